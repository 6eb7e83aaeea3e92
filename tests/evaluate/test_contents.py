"""Words and faces over K, and numbers by slice, on a corpus of three sources; each number beside a plain loop over images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tiny_pipeline
from PIL import Image, ImageDraw
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.config import parse_config
from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus, Sample, iter_shard
from flextok.data.images import center_crop, decode, to_model, to_uint8
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig, ReconstructionConfig, ReportConfig
from flextok.evaluate.contents import Recognised
from flextok.evaluate.parts import pack, unpack
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.reconstructor import Reconstructed
from flextok.evaluate.regions import Regions, regions_of
from flextok.evaluate.report import write_report
from flextok.evaluate.results import EvaluationResult
from flextok.metrics.networks import shared_efficientnet
from flextok.model.load import load_tokenizer

FACE = [12, 4, 32, 24]
SETTINGS = {
    "recognisers": [{"kind": "template"}, {"kind": "efficientnet_lite0"}],
    "slices": ["source", "glyph_px"],
    "metrics": ["mae", "psnr"],
    "keep": [1, 4],
    "batch_size": 5,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Scenes, drawn words of 6 and 8 px, and three wide pictures with a face each, twice as large as their crops."""
    root = tmp_path_factory.mktemp("mixed")
    for index in range(3):
        picture = Image.new("RGB", (96, 64), (90, 120, 40 * index))
        ImageDraw.Draw(picture).ellipse((40, 10, 62, 46), fill=(220, 180, 150))
        (root / "faces" / "val").mkdir(parents=True, exist_ok=True)
        picture.save(root / "faces" / "val" / f"{index}.png")
        boxes = [[2 * x + 16 if place % 2 == 0 else 2 * x for place, x in enumerate(FACE)], [0, 0, 30, 30]]
        (root / "faces" / "val" / f"{index}.json").write_text(json.dumps({"faces": boxes}))
    config = CorpusConfig.model_validate(
        {
            "sources": [{"url": "scenes"}, {"url": "drawn_words", "name": "text"}, {"url": f"{root}/faces"}],
            "scenes": {"val_samples": 5},
            "words": {"val_samples": 8, "image_px": 32, "glyph_px": [6, 8]},
            "shard_samples": 6,
        }
    )
    shard_corpus(config, "val", str(root / "corpus"), workers=1, progress=False)
    return Corpus.open(str(root / "corpus"))


@pytest.fixture(scope="module")
def made(pipeline: TinyPipeline, corpus: Corpus) -> EvaluationResult:
    return evaluate(pipeline, corpus)


def evaluate(pipeline: TinyPipeline, corpus: Corpus, **changes: object) -> EvaluationResult:
    config = parse_config(EvaluationConfig, {**EVALUATION.model_dump(), **SETTINGS, **changes}, "test")
    return evaluate_reconstruction(pipeline.tokenizer, corpus.url, pipeline.evaluations, config)


@pytest.fixture(scope="module")
def pictures(pipeline: TinyPipeline, corpus: Corpus) -> list[tuple[Sample, np.ndarray, np.ndarray]]:
    """Each sample, its crop and that from four tokens."""
    tokenizer = load_tokenizer(pipeline.tokenizer)
    found = []
    for sample in (sample for shard in corpus.shards for sample in iter_shard(corpus.url, shard)):
        crop = center_crop(decode(sample.image).rgb, tiny_pipeline.SIZE_PX)
        made = tokenizer.autoencode(
            to_model(crop[None]), keep=4, steps=EVALUATION.steps, guidance=EVALUATION.guidance,
            seed=EVALUATION.seed, sample_ids=[sample.key],
        )  # fmt: skip
        found.append((sample, crop, to_uint8(made)[0]))
    return found


def item(made: EvaluationResult, name: str, k: int | None = None) -> dict:
    (found,) = (each for each in made.metrics if each["name"] == name and each["k"] == k)
    return found


def test_words_are_read_from_their_boxes(made: EvaluationResult, pictures) -> None:
    from flextok.metrics.recognisers.template import TemplateReader

    read, right, of_originals = TemplateReader(), [], []
    for sample, original, reconstruction in pictures:
        texts = sample.meta.get("metadata", {}).get("texts", [])
        for image, values in ((original, of_originals), (reconstruction, right)):
            words = []
            for text in texts:
                left, top, r, b = text["box"]
                words.append(read([image[top:b, left:r]]) == [text["text"]])
            values += [np.mean(words)] if words else []
    assert len(right) == 8
    assert np.mean(of_originals) == 1 == made.value("text_accuracy_template_originals")
    assert made.value("text_accuracy_template", 4) == pytest.approx(np.mean(right))
    number = item(made, "text_similarity_template", 4)
    assert number["protocol"]["images"] == 8 and number["protocol"]["data"]["images"] == 16
    assert number["protocol"]["recogniser"]["recogniser"] == "template"
    table = pl.read_parquet(f"{made.url}/contents.parquet").filter(name="text_similarity_template", k=4)
    assert number["value"] == pytest.approx(table["value"].mean(), rel=1e-5)
    assert number["standard_error"] == pytest.approx(table["value"].std() / 8**0.5, rel=1e-5)


def test_faces_are_compared_in_the_crop(made: EvaluationResult, pictures) -> None:
    """The box is where it was before the picture was made half as large and cut; the one that is cut off does not count."""
    import torch

    from flextok.model.efficientnet_lite0 import network_input

    left, top, right, bottom = FACE

    def features(image: np.ndarray) -> torch.Tensor:
        region = torch.tensor(image[top:bottom, left:right].copy()).permute(2, 0, 1)[None]
        return shared_efficientnet().extract_features(network_input(region)).mean(dim=(2, 3))

    pairs = [(a, b) for sample, a, b in pictures if sample.meta["source"].startswith("faces/")]
    with torch.inference_mode():
        expected = [torch.cosine_similarity(features(a), features(b)).item() for a, b in pairs]
    assert len(expected) == 3
    assert made.value("face_similarity_efficientnet_lite0", 4) == pytest.approx(np.mean(expected), rel=1e-4)
    assert item(made, "face_similarity_efficientnet_lite0", 4)["protocol"]["images"] == 3
    assert "face_similarity_efficientnet_lite0_originals" not in [each["name"] for each in made.metrics]
    assert made.value("latents_face_similarity_efficientnet_lite0") < 1


def test_slices_are_means_of_parts(made: EvaluationResult) -> None:
    table = pl.read_parquet(f"{made.url}/images.parquet")
    for source, count in (("scenes", 5), ("text", 8), ("faces", 3)):
        part = table.filter((pl.col("k") == 4) & pl.col("key").str.starts_with(f"{source}_"))["psnr"]
        number = item(made, f"psnr_source_{source}", 4)
        assert (len(part), number["value"]) == (count, pytest.approx(part.mean(), rel=1e-5))
        assert number["standard_error"] == pytest.approx(part.std() / count**0.5, rel=1e-5)
        assert number["protocol"]["slice"] == {"by": "source", "value": source, "images": count, "of": "psnr"}
    whole = (5 * made.value("mae_source_scenes", 1) + 8 * made.value("mae_source_text", 1)) / 16
    assert whole + 3 / 16 * made.value("mae_source_faces", 1) == pytest.approx(made.value("mae", 1), rel=1e-4)
    assert made.value("latents_mae_source_text") > 0
    assert {
        name for name in (each["name"] for each in made.metrics) if name.startswith("text_accuracy_template_source")
    } == {"text_accuracy_template_source_text"}


def test_numbers_by_size_are_curves(made: EvaluationResult) -> None:
    curves = [each for each in made.series if each["name"] == "text_similarity_template_by_glyph_px"]
    assert [each["protocol"]["keep"] for each in curves] == [1, 4]
    for curve in curves:
        k = curve["protocol"]["keep"]
        assert curve["at"] == [6, 8]
        assert curve["values"] == [made.value(f"text_similarity_template_glyph_px_{size}", k) for size in (6, 8)]
        assert curve["protocol"]["slice"] == {"by": "glyph_px", "of": "text_similarity_template", "images": [4, 4]}
    names = {each["name"] for each in made.series}
    assert "text_accuracy_template_originals_by_glyph_px" in names and "psnr_by_source" not in names


def test_neither_batches_nor_settings_of_others_decide(pipeline: TinyPipeline, corpus: Corpus, made: EvaluationResult):
    alone = evaluate(pipeline, corpus, batch_size=16, recognisers=[{"kind": "template"}], slices=[])
    for name in ("text_accuracy_template", "text_similarity_template", "mae"):
        assert alone.curve(name) == pytest.approx(made.curve(name), rel=1e-3)
    assert not any("slice" in each["protocol"] for each in alone.metrics) and alone.digest != made.digest
    assert parse_config(ReconstructionConfig, {}, "test").content().keys().isdisjoint({"recognisers", "slices"})


def test_the_report_shows_both(pipeline: TinyPipeline, made: EvaluationResult) -> None:
    inputs = replace(pipeline.report_inputs(), reconstruction_url=made.url)
    html = Path(write_report(inputs, pipeline.evaluations, ReportConfig()).html_path).read_text()
    assert '<span class="title">Words read right (template)</span>' in html
    assert '<span class="title">Words read right (template), by glyph_px</span>' in html
    assert '<span class="title">PSNR, dB, by source</span>' in html
    without = write_report(pipeline.report_inputs(), pipeline.evaluations, ReportConfig())
    assert not {'id="slices"', 'id="contents"'} & set(Path(without.html_path).read_text().split())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"slices": ["glyph"]}, "expected evaluation.slices among source, faces, glyph_px, texts, found glyph"),
        ({"slices": ["texts"]}, "expected a text or number as texts of each image"),
        ({"slices": ["source", "source"]}, "slices: expected each once, found source, source"),
        ({"recognisers": [{"kind": "templates"}]}, "the nearest is 'template'"),
        ({"recognisers": [{"kind": "template"}] * 2}, "recognisers: expected each once, found template, template"),
        ({"recognisers": [{"kind": "transformers", "name": "f", "path": "/no", "sha256": "0" * 64}]}, "/no"),
    ],
)
def test_what_cannot_be_measured_is_told(pipeline: TinyPipeline, corpus: Corpus, changes: dict, told: str) -> None:
    with pytest.raises(UsageError) as error:
        evaluate(pipeline, corpus, **changes)
    assert told in str(error.value)


def test_a_corpus_without_words_is_told(pipeline: TinyPipeline) -> None:
    with pytest.raises(UsageError, match="expected images with texts in their metadata for the recogniser template"):
        evaluate(pipeline, Corpus.open(pipeline.val), slices=[])


def test_boxes_follow_the_crop() -> None:
    def found(**document: object) -> Regions:
        return regions_of({"a": document}, 32)["a"]

    texts = [{"text": "here", "box": [20, 0, 60, 40]}, {"text": "gone", "box": [0, 0, 40, 40]}]
    assert found(width=96, height=64, metadata={"texts": texts}) == ([("here", (2, 0, 22, 20))], [])
    assert found(width=32, height=48, metadata={"faces": [[0, 8, 32, 40]]}) == ([], [(0, 0, 32, 32)])
    assert found(width=32, height=48) == ([], [])
    with pytest.raises(UsageError, match="metadata of sample a, found others"):
        found(width=32, height=32, metadata={"texts": [{"text": "x", "box": [1, 2, 1, 4]}]})
    with pytest.raises(UsageError, match=r"shard it without corpus.resize_short_side"):
        found(width=32, height=32, metadata={"faces": [[0, 0, 2, 2]]}, source_sha256="0")


def test_parts_hold_what_was_recognised(tmp_path: Path) -> None:
    whole = Reconstructed([], [], {}, [Recognised("text_accuracy_template", 4, ["a", "b"], [0.5, 1.0])])
    (tmp_path / "part").write_bytes(pack(whole.to_plain()))
    assert Reconstructed.from_plain(unpack(str(tmp_path / "part"))) == whole
    assert Reconstructed.from_plain([[], [], []]).recognised == []
