"""A metric of one's own: registered here, named by the settings, measured, and shown in the report."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.config import parse_config
from flextok.data.corpus.reader import Corpus
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig, ReportConfig
from flextok.evaluate.features import load_extractor
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.grid import ORIGINAL
from flextok.evaluate.images import choose_keys, stream_images
from flextok.evaluate.measure import ImageSets, Measure, Pictures
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.report import write_report
from flextok.evaluate.results import EvaluationResult
from flextok.evaluate.sampling import read_images
from flextok.metrics import IMAGE_METRICS, SET_METRICS, ImageMetric, SetMetric
from flextok.metrics.statistics import FeatureStatistics
from pipelines.recipe import load_recipe

MAX_ERROR = ImageMetric(
    name="max_error",
    label="Largest error",
    definition="largest |a - b| of uint8 images / 255, per image, then averaged over images",
    better="lower",
    unit="fraction",
    compute=lambda images, originals: np.abs(images.astype(float) - originals).max(axis=(1, 2, 3)) / 255,
    record=lambda: {"norm": "maximum"},
)


def colour_distance(reference: FeatureStatistics, images: FeatureStatistics) -> float:
    return float(np.linalg.norm(reference.mean() - images.mean()))


COLOURS = SetMetric(
    name="colours",
    definition="distance of the mean colours of both sets, 0-255",
    unit="",
    better="lower",
    hint="distance of mean colours",
    needs="statistics",
    features=lambda images: images.mean(axis=(1, 2)),
    compute=colour_distance,
    number_name=lambda features: "colour_distance",
)
COVERED = SetMetric(
    name="covered",
    definition="share of reference features with an image of the set nearer than their farthest neighbour",
    unit="",
    better="higher",
    needs="features",
    compute=lambda reference, images: float(
        (_distances(reference, images).min(axis=1) <= _distances(reference, reference).max(axis=1)).mean()
    ),
    number_name=lambda extractor: f"covered_{extractor}",
    images_needed=lambda width: 1000,
)
YAML = {"metrics": ["max_error", "mae"], "set_metrics": ["colours", "covered", "frechet"]}


def _distances(rows_ND: np.ndarray, columns_MD: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows_ND[:, None] - columns_MD[None], axis=2)


@pytest.fixture(scope="module")
def config() -> Iterator[EvaluationConfig]:
    """Settings that name the toys; they are forgotten afterwards."""
    IMAGE_METRICS.register(MAX_ERROR)
    SET_METRICS.register(COLOURS)
    SET_METRICS.register(COVERED)
    yield parse_config(EvaluationConfig, {**EVALUATION.model_dump(mode="json"), **YAML}, "test")
    IMAGE_METRICS.remove("max_error")
    SET_METRICS.remove("colours")
    SET_METRICS.remove("covered")


@pytest.fixture(scope="module")
def reconstruction(pipeline: TinyPipeline, config: EvaluationConfig) -> EvaluationResult:
    return evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, config)


@pytest.fixture(scope="module")
def generation(pipeline: TinyPipeline, config: EvaluationConfig) -> EvaluationResult:
    return evaluate_generation(pipeline.samples.url, pipeline.val, pipeline.tokenizer, pipeline.evaluations, config)


def test_a_line_of_a_profile_names_it(config: EvaluationConfig):
    before, after = load_recipe("smoke"), load_recipe("smoke", ["evaluation.metrics=[mae, max_error]"])
    assert after.evaluation.metrics == ("mae", "max_error")
    assert before.evaluation.content() != after.evaluation.content()
    with pytest.raises(UsageError, match="nearest is 'max_error'"):
        load_recipe("smoke", ["evaluation.metrics=[mae, max_eror]"])


def test_an_image_metric_is_measured_at_every_k(pipeline: TinyPipeline, reconstruction: EvaluationResult):
    assert list(reconstruction.curve("max_error")) == [1, 2, 4]
    table = pq.read_table(f"{reconstruction.url}/images.parquet")
    rows = [row for row in table.to_pylist() if row["k"] == 2]
    assert table.column_names == ["key", "label", "k", "max_error", "mae"]
    assert reconstruction.value("max_error", 2) == pytest.approx(np.mean([row["max_error"] for row in rows]), rel=1e-5)
    assert all(row["mae"] <= row["max_error"] <= 1 for row in rows)
    item = next(item for item in reconstruction.metrics if item["name"] == "latents_max_error")
    assert item["protocol"]["definition"] == MAX_ERROR.definition
    assert item["protocol"]["norm"] == "maximum"
    # What both evaluations measure is equal, and what is named decides the recipe.
    assert reconstruction.value("mae", 2) == pipeline.reconstruction.value("mae", 2)
    assert reconstruction.curve("fd_random_conv") == pipeline.reconstruction.curve("fd_random_conv")
    assert not reconstruction.curve("psnr")
    assert reconstruction.digest != pipeline.reconstruction.digest


def test_a_set_metric_compares_the_samples_with_the_held_out_images(
    pipeline: TinyPipeline, generation: EvaluationResult
):
    corpus = Corpus.open(pipeline.val)
    keys = choose_keys(corpus.index("key")["key"].to_list(), None)
    originals = np.concatenate([batch.images_BHWC for batch in stream_images(corpus, keys, 32, 16)])
    samples = read_images(pipeline.samples.url, 2, [f"{index:06d}" for index in range(32)])
    expected = np.linalg.norm(originals.mean(axis=(0, 1, 2)) - samples.mean(axis=(0, 1, 2)))
    assert generation.value("colour_distance_samples", 2) == pytest.approx(expected, rel=1e-5)
    assert list(generation.curve("covered_random_conv_samples")) == [1, 2, 4]
    assert generation.curve("fd_random_conv_samples") == pipeline.generation.curve("fd_random_conv_samples")
    protocols = {item["name"]: item["protocol"]["distance"] for item in generation.metrics}
    assert protocols["colour_distance_random_tokens"]["extractor"] == {"name": "colours", "width": 3}
    assert protocols["colour_distance_random_tokens"]["small_sample"] is False
    assert protocols["covered_random_conv_samples"]["small_sample"] is True
    assert protocols["covered_random_conv_samples"]["extractor"]["name"] == "random_conv"


def test_both_are_shown_in_the_report(
    pipeline: TinyPipeline, reconstruction: EvaluationResult, generation: EvaluationResult
):
    inputs = pipeline.report_inputs()
    toys = {"reconstruction_url": reconstruction.url, "generation_url": generation.url}
    made = write_report(type(inputs)(**{**vars(inputs), **toys}), pipeline.evaluations, ReportConfig())
    page = Path(made.html_path).read_text()
    assert '<span class="title">Largest error</span>' in page
    assert '<span class="title">colour_distance</span>' in page
    assert "distance of mean colours; lower is nearer" in page
    assert "Largest error, K=1 → K=4" in page
    assert "covered_random_conv to held-out images at K=4, 32 of each; higher is nearer" in page
    assert "PSNR" not in page
    numbers = {(item["name"], item["k"]): item["value"] for item in json.loads(Path(made.url, "metrics.json").read_text())["metrics"]}  # fmt: skip
    assert f"{numbers['max_error', 4]:.1%}" in page


def test_features_are_made_once_for_all_that_need_them(config: EvaluationConfig):
    sets = ImageSets(config, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 8, 8, 3), dtype=np.uint8)
    parts = [
        Pictures(k, images[index, start : start + 15]) for index, k in ((0, ORIGINAL), (1, 3)) for start in (0, 15, 30)
    ]
    for measured in map(Measure(ImageSets(config, "cpu")), parts[::-1]):
        sets.add(measured)
    features = [load_extractor("random_conv")(each) for each in images]
    found = {metric.name: sets.compare(metric, 3, {"keep": 3}, {"images": 40}).value for metric in sets.metrics}
    assert found["covered"] == COVERED.compute(*features)
    assert found["colours"] == pytest.approx(np.linalg.norm(np.subtract(*images.mean(axis=(1, 2, 3)))), rel=1e-9)
    assert set(found) == {"colours", "covered", "frechet"}


def test_without_the_mean_error_its_fall_is_left_out(pipeline: TinyPipeline):
    psnr = EVALUATION.model_copy(update={"metrics": ("psnr",), "keep": (4,), "max_images": 8})
    made = evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, psnr)
    assert [item["name"] for item in made.metrics] == ["latents_psnr", "psnr", "fd_random_conv"]
