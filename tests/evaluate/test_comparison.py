"""Numbers are subtracted only where they were measured alike, with the interval of what was measured."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok import storage
from flextok.errors import UsageError
from flextok.evaluate.comparison import ComparedNumber, compare_evaluations
from flextok.evaluate.reconstruction import evaluate_reconstruction
from pipelines import cli


@pytest.fixture(scope="module")
def other_seed(pipeline: TinyPipeline) -> str:
    """The same tokenizer and images, decoded with other noise."""
    config = EVALUATION.model_copy(update={"seed": 1})
    return evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, config).url


def by_place(numbers: list[ComparedNumber]) -> dict[tuple[str, int | None], ComparedNumber]:
    return {(number.name, number.k): number for number in numbers}


def values_of(url: str, name: str, k: int) -> dict[str, float]:
    return {row["key"]: row[name] for row in pq.read_table(f"{url}/images.parquet").to_pylist() if row["k"] == k}


def test_differences_have_the_interval_of_single_images(pipeline: TinyPipeline, other_seed: str):
    first = pipeline.reconstruction.url
    numbers = by_place(compare_evaluations([first, other_seed], ["decoder.seed"]))
    (found,) = numbers["psnr", 2].differences
    before, after = values_of(first, "psnr", 2), values_of(other_seed, "psnr", 2)
    changes = np.array([after[key] - before[key] for key in before])
    assert found is not None and found.paired and found.half_width is not None
    assert found.value == pytest.approx(changes.mean(), abs=1e-4)
    assert found.half_width == pytest.approx(1.96 * changes.std(ddof=1) / math.sqrt(len(changes)))
    (of_sets,) = numbers["fd_random_conv", 2].differences
    assert of_sets is not None and of_sets.half_width is None


def test_without_single_images_it_is_that_of_two_means(pipeline: TinyPipeline, other_seed: str, tmp_path: Path):
    bare = tmp_path / "bare"
    shutil.copytree(other_seed, bare)
    (bare / "images.parquet").unlink()
    numbers = by_place(compare_evaluations([pipeline.reconstruction.url, str(bare)], ["decoder"]))
    (found,) = numbers["mae", 1].differences
    errors = [
        np.std(list(values_of(url, "mae", 1).values()), ddof=1) / math.sqrt(48)
        for url in (pipeline.reconstruction.url, other_seed)
    ]
    assert found is not None and not found.paired
    assert found.half_width == pytest.approx(1.96 * math.hypot(*errors), rel=1e-4)


def test_other_protocols_are_named_and_not_subtracted(pipeline: TinyPipeline, other_seed: str):
    numbers = by_place(compare_evaluations([pipeline.reconstruction.url, other_seed]))
    assert numbers["mae", 4].differences == [None]
    assert numbers["mae", 4].differing == [["decoder.seed (0, 1)"]]
    (through_latents,) = numbers["latents_mae", None].differences
    assert through_latents is not None and (through_latents.value, through_latents.half_width) == (0, 0)


def test_another_tokenizer_is_what_may_differ(pipeline: TinyPipeline, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(pipeline.reconstruction.url, other)
    document = storage.read_json(f"{other}/metrics.json")
    for item in document["metrics"]:
        item["protocol"]["tokenizer"] = "0" * 64
        item["value"] += 1
    storage.write_json(f"{other}/metrics.json", document)
    for number in compare_evaluations([pipeline.reconstruction.url, str(other)]):
        (difference,) = number.differences
        assert difference is not None and difference.value == pytest.approx(1)


def test_nothing_in_common_is_refused(pipeline: TinyPipeline):
    with pytest.raises(UsageError, match="found none"):
        compare_evaluations([pipeline.reconstruction.url, pipeline.generation.url])


def test_the_command_shows_a_table_a_page_and_json(pipeline: TinyPipeline, other_seed: str, tmp_path: Path, capsys):
    named = [pipeline.reconstruction.digest[:10], f"<i>other</i>={other_seed}"]
    command = ["compare", *named, "--workspace", str(pipeline.root)]
    page = tmp_path / "page.html"
    assert cli.run([*command, "--html", str(page)]) == 0
    shown = capsys.readouterr()
    header, *rows = shown.out.splitlines()
    assert header.split() == ["number", "K", pipeline.reconstruction.digest[:12], "<i>other</i>", "difference"]
    assert any(row.split()[:2] == ["fd_random_conv", "4"] for row in rows)
    assert "protocols differ in decoder.seed (0, 1)" in shown.err
    html = page.read_text()
    assert "&lt;i&gt;other&lt;/i&gt;" in html and "<i>other" not in html and "default-src 'none'" in html

    assert cli.run([*command, "--json", "--may-differ", "decoder.seed"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["label"] for each in found["evaluations"]] == [pipeline.reconstruction.digest[:12], "<i>other</i>"]
    assert all(number["differing"] == [[]] for number in found["numbers"])


@pytest.mark.parametrize("wrong", [["nowhere"], ["", "nowhere"]])
def test_what_is_no_evaluation_is_one_line(pipeline: TinyPipeline, wrong: list[str], capsys):
    assert cli.run(["compare", *wrong, "--workspace", str(pipeline.root)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: expected the folder of an evaluation or the beginning of a digest")
