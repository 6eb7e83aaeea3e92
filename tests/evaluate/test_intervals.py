"""Intervals of numbers of sets: beside the same numbers, in the report and in comparisons."""

import json
from pathlib import Path

import numpy as np
import pytest
from given_pictures import evaluate, numbers, pictures, save
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig, GenerationConfig, ReportConfig
from flextok.evaluate.features import load_extractor
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.report import write_report
from flextok.evaluate.results import Metric
from pipelines import cli

BOOTSTRAP = ["--set", "evaluation.bootstrap=60"]


def stored(evaluation: Path) -> dict[str, Metric]:
    items = json.loads((evaluation / "metrics.json").read_text())["metrics"]
    return {item["name"]: Metric.from_json(item) for item in items}


def test_they_change_no_number_and_enter_comparisons(tmp_path: Path, capsys) -> None:
    reference = save(tmp_path / "reference", pictures(60, 0, noise=10))
    first, second = (save(tmp_path / str(noise), pictures(60, 1, noise)) for noise in (30, 60))
    plain = evaluate(first, reference, tmp_path, capsys, "--no-pairs")
    made = [evaluate(each, reference, tmp_path, capsys, "--no-pairs", *BOOTSTRAP) for each in (first, second)]
    assert numbers(made[0]) == numbers(plain)
    found = [stored(each)["fd_random_conv"] for each in made]
    assert stored(plain)["fd_random_conv"].interval is None
    for metric in found:
        assert metric.interval is not None
        assert metric.interval["low"] < metric.value < metric.interval["high"]
        assert (metric.interval["resamples"], metric.interval["resampled"]) == (60, "images and reference")
    assert cli.run(["compare", *map(str, made), "--json"]) == 0
    (number,) = json.loads(capsys.readouterr().out)["numbers"]
    assert number["intervals"][0] == [found[0].interval["low"], found[0].interval["high"]]  # type: ignore[index]
    errors = [metric.standard_error or 0 for metric in found]
    assert number["differences"][0]["half_width"] == pytest.approx(1.96 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5)
    assert cli.run(["compare", *map(str, made)]) == 0
    shown = capsys.readouterr().out
    assert "[" in shown and "±" in shown


def test_pictures_and_their_originals_are_drawn_together(tmp_path: Path, capsys) -> None:
    reference, images = (
        save(tmp_path / "reference", pictures(60, 0)),
        save(tmp_path / "images", pictures(60, 1, noise=10)),
    )
    in_pairs, apart = (
        stored(evaluate(images, reference, tmp_path, capsys, *BOOTSTRAP, *more))["fd_random_conv"]
        for more in ([], ["--no-pairs"])
    )
    assert in_pairs.value == apart.value
    assert in_pairs.interval is not None and in_pairs.interval["resampled"] == "pairs"
    assert (in_pairs.standard_error or 0) < 0.2 * (apart.standard_error or 0)


def test_given_statistics_stay_as_they_are(tmp_path: Path, capsys) -> None:
    features = load_extractor("random_conv")(np.stack(list(pictures(60, 0).values())))
    np.savez(tmp_path / "reference.npz", mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
    images = save(tmp_path / "images", pictures(60, 1, noise=30))
    found = stored(evaluate(images, str(tmp_path / "reference.npz"), tmp_path, capsys, *BOOTSTRAP))["fd_random_conv"]
    assert found.interval is not None and found.interval["resampled"] == "images"
    assert found.interval["low"] < found.value < found.interval["high"]


def test_pairs_are_drawn_together_and_the_report_shows_all(pipeline: TinyPipeline) -> None:
    config = EVALUATION.model_copy(update={"bootstrap": 40})
    reconstruction = evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, config)
    generation = evaluate_generation(
        pipeline.samples.url, pipeline.val, pipeline.tokenizer, pipeline.evaluations, config
    )
    assert reconstruction.curve("fd_random_conv") == pipeline.reconstruction.curve("fd_random_conv")
    of_pairs = next(item for item in reconstruction.metrics if item["name"] == "fd_random_conv")
    of_sets = next(item for item in generation.metrics if item["name"] == "fd_random_conv_samples")
    assert (of_pairs["interval"]["resampled"], of_sets["interval"]["resampled"]) == ("pairs", "images and reference")
    inputs = pipeline.report_inputs()
    with_intervals = {"reconstruction_url": reconstruction.url, "generation_url": generation.url}
    made = write_report(type(inputs)(**{**vars(inputs), **with_intervals}), pipeline.evaluations, ReportConfig())
    page = Path(made.html_path).read_text()
    assert f'[<data value="{of_pairs["interval"]["low"]}">' in page
    assert next(iter(stored(Path(made.url)).values())).name == "latents_mae"  # and it reads back


def test_the_setting_is_silent_at_its_default_and_too_few_are_told() -> None:
    assert "bootstrap" not in EvaluationConfig().part(GenerationConfig).content()
    assert EvaluationConfig(bootstrap=100).part(GenerationConfig).content()["bootstrap"] == 100
    with pytest.raises(UsageError, match="bootstrap: expected 0 or at least 40 resamples, found 10"):
        parse_config(EvaluationConfig, {"bootstrap": 10}, "profile")
