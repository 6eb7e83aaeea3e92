"""Reference sets: made once by shard, the same however the set is cut, and read by evaluations in place of the pictures."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_pipeline import EVALUATION, SIZE_PX, TinyPipeline

from flextok import storage
from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus
from flextok.data.scenes import ScenesConfig
from flextok.errors import IntegrityError, UsageError
from flextok.evaluate import reference as references
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.grid import GIVEN, ORIGINAL
from flextok.evaluate.images import stream_images
from flextok.evaluate.measure import ImageSets, Measure, Pictures
from flextok.evaluate.pictures import evaluate_pictures
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.reference import Reference, make_reference, verify_reference
from flextok.provenance import lineage

ALL = EVALUATION.model_copy(
    update={"set_metrics": ("frechet", "spatial_frechet", "inception_score", "precision", "coverage"), "bootstrap": 40}
)


@pytest.fixture(scope="module")
def reference(pipeline: TinyPipeline) -> Reference:
    return make_reference(pipeline.val, str(pipeline.root / "reference"), EVALUATION, SIZE_PX)


@pytest.mark.parametrize("shard_samples", [14, 5, 2])
def test_a_set_in_1_3_and_7_shards_is_that_of_one_pass(tmp_path: Path, shard_samples: int):
    scenes = ScenesConfig(train_samples=14, val_samples=14, image_px=SIZE_PX)
    url = str(tmp_path / "corpus")
    shard_corpus(
        CorpusConfig(source="scenes", scenes=scenes, shard_samples=shard_samples), "val", url, workers=1, progress=False
    )
    config = ALL.model_copy(update={"set_metrics": ("frechet", "spatial_frechet", "precision"), "bootstrap": 0})
    made = make_reference(url, str(tmp_path / "reference"), config, SIZE_PX)
    corpus = Corpus.open(url)
    assert len(made.manifest["parts"]) == len(corpus.shards) == -(-14 // shard_samples)
    sets = ImageSets(config, "cpu")
    gathered = made.gathered(sets)
    (batch,) = stream_images(corpus, corpus.index("key")["key"].to_list(), SIZE_PX, 64)
    whole = sets.features(batch.images_BHWC)
    for source in ("random_conv", "random_conv spatial"):
        statistics = gathered.of(source, "statistics")
        assert not isinstance(statistics, np.ndarray)
        np.testing.assert_allclose(statistics.mean(), whole[source].mean(axis=0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(statistics.covariance(), np.cov(whole[source], rowvar=False), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(gathered.of("random_conv", "features"), whole["random_conv"])


@pytest.mark.parametrize("config", [EVALUATION, ALL], ids=["statistics", "all"])
def test_evaluations_give_the_same_numbers_with_it(pipeline: TinyPipeline, config, monkeypatch: pytest.MonkeyPatch):
    made = make_reference(pipeline.val, str(pipeline.root / "reference"), config, SIZE_PX)
    apart = str(pipeline.root / "apart")
    seen = []
    features = ImageSets.features
    monkeypatch.setattr(ImageSets, "features", lambda self, images: seen.append(len(images)) or features(self, images))
    reconstruction = pipeline.tokenizer, pipeline.val
    generation = pipeline.samples.url, pipeline.val, pipeline.tokenizer
    for evaluate, arguments, sets in (
        (evaluate_reconstruction, reconstruction, 3),
        (evaluate_generation, generation, 4),
    ):
        plain = evaluate(*arguments, apart, config)
        with_originals = sum(seen)
        seen.clear()
        read = evaluate(*arguments, apart, config, reference_url=made.url)
        assert read.digest == plain.digest
        assert (with_originals - sum(seen), sum(seen)) == (48, sets * (48 if sets == 3 else 32))
        assert made.digest in [item["digest"] for item in lineage(read.url)["inputs"]]
        seen.clear()


def test_it_is_made_once_and_again_where_it_is_damaged(
    pipeline: TinyPipeline, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parent = str(tmp_path / "reference")
    shutil.copytree(reference.url, f"{parent}/{reference.digest}")
    made = []
    work = references.ShardMaker.__call__
    monkeypatch.setattr(references.ShardMaker, "__call__", lambda self, item: made.append(item[0]) or work(self, item))

    def again() -> Reference:
        made.clear()
        return make_reference(pipeline.val, parent, EVALUATION, SIZE_PX)

    assert again().digest == reference.digest and made == []
    (Path(parent) / reference.digest / "manifest.json").unlink()  # killed before the end
    (Path(parent) / reference.digest / "features" / "000001.safetensors").unlink()
    found = again()
    assert made == ["000001"]
    assert found.manifest["parts"] == reference.manifest["parts"]
    part = Path(found.url) / "features" / "000002.safetensors"
    part.write_bytes(part.read_bytes()[:-8])
    assert "000002" in verify_reference(found.url)[0]
    with pytest.raises(IntegrityError, match="part of a set"):
        found.gathered(ImageSets(EVALUATION, "cpu"))
    assert again().manifest["parts"] == reference.manifest["parts"]


@pytest.mark.parametrize(
    ("corpus", "size_px", "changes", "told"),
    [
        ("train", SIZE_PX, {}, "expected a reference of corpus"),
        ("val", 16, {}, "expected a reference of crop 32 px, found 16 px"),
        ("val", SIZE_PX, {"set_metrics": ("precision",)}, r"expected a reference with statistics by random_conv"),
    ],
)
def test_another_reference_is_told(
    pipeline: TinyPipeline, corpus: str, size_px: int, changes: dict, told: str, tmp_path: Path
):
    config = EVALUATION.model_copy(update=changes)
    other = make_reference(getattr(pipeline, corpus), str(tmp_path), config, size_px)
    with pytest.raises(UsageError, match=told):
        evaluate_reconstruction(pipeline.tokenizer, pipeline.val, str(tmp_path), EVALUATION, reference_url=other.url)


def test_of_other_images_it_is_not_read(pipeline: TinyPipeline, reference: Reference):
    config = EVALUATION.model_copy(update={"max_images": 24})
    made = evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, config, None, reference.url)
    assert reference.digest not in [item["digest"] for item in lineage(made.url)["inputs"]]
    assert made.metrics[-1]["protocol"]["distance"]["reference"]["images"] == 24


def test_its_files_serve_others(pipeline: TinyPipeline, reference: Reference, tmp_path: Path):
    pictures = f"{pipeline.samples.url}/images/k004"
    by_file = evaluate_pictures(pictures, f"{reference.url}/statistics.npz", str(tmp_path), EVALUATION)
    assert by_file.value("fd_random_conv") == pytest.approx(
        pipeline.generation.value("fd_random_conv_samples", 4), rel=1e-5
    )
    crops = [np.load(storage.join(reference.url, "crops", f"00000{shard}.npz"))["arr_0"] for shard in range(3)]
    sets = ImageSets(EVALUATION, "cpu")
    sets.take(ORIGINAL, reference.gathered(sets))
    sets.add(Measure(sets)(Pictures(GIVEN, np.concatenate(crops))))
    assert sets.compare(sets.metrics[0], GIVEN, {}, reference.images).value == pytest.approx(0, abs=1e-6)
