"""A tokenizer is not judged by images that it was trained on, unless someone says so: then the protocol does too."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from tiny_pipeline import EVALUATION, SIZE_PX, TinyPipeline

from flextok import storage
from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus
from flextok.data.scenes import ScenesConfig
from flextok.errors import UsageError
from flextok.evaluate.config import ReportConfig
from flextok.evaluate.held_out import COMPARED, held_out_record
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.report import write_report


def record_of(tokenizer_url: str, corpus_url: str, first: int | None = None) -> dict:
    corpus = Corpus.open(corpus_url)
    return held_out_record(tokenizer_url, corpus, corpus.index("key")["key"].to_list()[:first], allowed=True)


def test_training_images_are_refused_or_stand_in_the_protocol(pipeline: TinyPipeline, tmp_path):
    def evaluate(url: str, **changes: object):
        config = EVALUATION.model_copy(update={"max_images": 40, **changes})
        return evaluate_reconstruction(pipeline.tokenizer, url, str(tmp_path), config)

    with pytest.raises(UsageError, match=r"was on 40 of the 40 in .*evaluation\.allow_training_images=true"):
        evaluate(pipeline.train)
    assert not list(tmp_path.iterdir())
    made = evaluate(pipeline.train, allow_training_images=True)
    assert {item["protocol"]["data"]["in_training"] for item in made.metrics} == {40}
    inputs = dataclasses.replace(pipeline.report_inputs(), reconstruction_url=made.url)
    page = write_report(inputs, str(tmp_path), ReportConfig())
    assert "40 held-out images, of which 40 are in the training set too" in Path(page.html_path).read_text()
    held_out = evaluate(pipeline.val).metrics[0]["protocol"]["data"]
    assert (held_out["in_training"], held_out["compared_by"]) == (0, COMPARED)


def test_the_same_images_in_another_corpus_are_found(pipeline: TinyPipeline, tmp_path):
    """Other shards, and more of the scenes, of which the first 64 are those of the training."""
    scenes = ScenesConfig(train_samples=100, image_px=SIZE_PX)
    other = CorpusConfig(name="other", source="scenes", scenes=scenes, shard_samples=7)
    url = shard_corpus(other, "train", str(tmp_path / "other"), workers=1, progress=False).url
    assert record_of(pipeline.tokenizer, url)["in_training"] == 64
    keys = set(Corpus.open(pipeline.train).index("key")["key"].to_list())
    first = Corpus.open(url).index("key")["key"].to_list()[:10]
    assert record_of(pipeline.tokenizer, url, first=10)["in_training"] == len(keys & set(first))


def test_training_corpora_that_are_gone_are_named(pipeline: TinyPipeline, tmp_path):
    """Their digests are all that is left to compare with."""
    digest = Corpus.open(pipeline.train).digest
    for part in ("tok", "vae"):
        shutil.copytree(pipeline.root / part, tmp_path / part)
    shutil.copytree(pipeline.train, tmp_path / "moved")
    tokenizer = str(tmp_path / "tok" / Path(pipeline.tokenizer).name)
    assert record_of(tokenizer, pipeline.val) == {
        "in_training": 0, "compared_by": COMPARED, "not_compared": [digest],
    }  # fmt: skip
    assert record_of(tokenizer, str(tmp_path / "moved"), first=5) == {"in_training": 5, "compared_by": COMPARED}


def test_a_checkpoint_without_lineage_says_nothing(pipeline: TinyPipeline, tmp_path):
    url = tmp_path / "imported"
    shutil.copytree(pipeline.tokenizer, url)
    provenance = storage.read_json(f"{url}/provenance.json")
    storage.write_json(f"{url}/provenance.json", {**provenance, "inputs": []})
    assert record_of(str(url), pipeline.train) == {"in_training": "unknown"}
