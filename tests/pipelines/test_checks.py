"""The checks that ride on assets, and which faults of a run under the daemon are tried again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import pytest

from flextok import storage
from flextok.aliases import promote
from flextok.data.tokens import TokenMeta, token_schema, token_table, write_token_manifest, write_token_shard
from flextok.errors import FlextokError, TransientError, UsageError
from flextok.evaluate.results import Metric, write_evaluation
from flextok.evaluate.vocabulary import VocabularyUse, vocabulary_use
from flextok.metrics.base import IMAGE_METRICS
from pipelines import html_page
from pipelines.assets import IN_PROCESS_TAG
from pipelines.definitions import build_definitions
from pipelines.defs import data
from pipelines.defs.data import few_rejects
from pipelines.defs.evaluation import not_worse_than_promoted
from pipelines.defs.prior import codebook_in_use
from pipelines.recipe import load_recipe
from pipelines.workspace import Workspace


def store_of(ids: np.ndarray, vocabulary: int, folder: Path) -> str:
    """A token store of one shard; `ids` [rows, tokens]."""
    meta = TokenMeta(tokenizer="a" * 64, vocab_size=vocabulary, num_tokens=ids.shape[1], preprocess={})
    empty = [None] * len(ids)
    columns: dict[str, Any] = dict.fromkeys(("label", "text", "width", "height", "sha256"), empty)
    columns["key"] = [f"{row:05d}" for row in range(len(ids))]
    table = token_table(token_schema(meta), ids[..., None], columns)
    record = write_token_shard(f"{folder}/000000.parquet", table.schema, [table])
    write_token_manifest(str(folder), "tokens", [record], meta, [], {})
    return str(folder)


@pytest.mark.parametrize("vocabulary", [16, 64_000])
def test_a_codebook_in_use_and_one_that_collapsed(vocabulary: int, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, vocabulary, (300, 8))
    assert codebook_in_use(vocabulary_use(store_of(ids, vocabulary, tmp_path / "used"))) == ""
    told = codebook_in_use(vocabulary_use(store_of(ids % 1, vocabulary, tmp_path / "collapsed")))
    assert told.startswith(f"1 of {vocabulary:,} ids are in use in the first 300 rows, ")


@pytest.mark.parametrize(("vocabulary", "ids"), [(16, 5), (16, 400), (1000, 700), (1, 3)])
def test_uniform_ids_have_a_share_of_one(vocabulary: int, ids: int) -> None:
    rng = np.random.default_rng(0)
    shares = [
        VocabularyUse(len(np.unique(rng.integers(0, vocabulary, ids))), vocabulary, ids, 1).share_of_uniform
        for _ in range(2000)
    ]
    assert np.mean(shares) == pytest.approx(1, abs=0.01)


def test_rejects_are_told_before_they_end_the_sharding() -> None:
    assert few_rejects(0, 0, 0.01) == few_rejects(1, 999, 0.01) == ""
    assert few_rejects(2, 998, 0.01).startswith("2 of 1000 images (0.20%) could not be used, 1.00% would end")


def evaluation(place: Workspace, kind: str, values: dict[int, float], steps: int = 25) -> str:
    """Stored MAE at each K, measured with `steps`."""
    protocol = {"tokenizer": str(values), "decoder": {"steps": steps}}
    metrics = [Metric("mae", value, protocol, k) for k, value in values.items()]
    return write_evaluation(kind, place.url("evaluation"), metrics, [], [], {}, {}).url


@pytest.mark.parametrize(
    ("values", "steps", "told"),
    [
        ({1: 0.5, 4: 0.25}, 25, ""),
        ({1: 0.52, 4: 0.26}, 25, ""),
        ({1: 0.5, 4: 0.275}, 25, "mae is 0.275 at K=4, 10.0% worse than 0.25; those of the promoted evaluation"),
        ({1: 0.4, 4: 0.1}, 25, ""),
        ({1: 0.9, 4: 0.9}, 50, ""),  # measured otherwise
        ({2: 0.9}, 25, ""),
    ],
)
def test_an_evaluation_beside_the_promoted_one(values: dict, steps: int, told: str, tmp_path: Path) -> None:
    place = Workspace(str(tmp_path))
    run: Any = SimpleNamespace(workspace=place, recipe=load_recipe("smoke"))
    new = evaluation(place, "reconstructions", values, steps)
    assert not_worse_than_promoted(run, IMAGE_METRICS["mae"], "mae", new) == ""
    for kind, before in (("reconstructions", {1: 0.5, 4: 0.25}), ("generation", {1: 0.01, 4: 0.01})):
        promote(place.url("evaluation"), evaluation(place, kind, before).rpartition("/")[2], kind)
    found = not_worse_than_promoted(run, IMAGE_METRICS["mae"], "mae", new)
    assert found.startswith(told) and bool(found) == bool(told)


def test_a_page_that_cannot_be_read(tmp_path: Path) -> None:
    url = str(tmp_path / "index.html")
    assert html_page.problems_of(url) == [f"{url} is not there"]
    good = '<!doctype html><html><body><h1>Report</h1><img src="data:image/png;base64,x"><a href="https://x">y</a></body></html>'
    for text, problem in {
        good: "",
        good[:40]: "ends within <h1>",
        good.replace("h1", "h2"): "has no heading",
        good.replace("data:image/png;base64,x", "https://elsewhere/x.png"): "loads https://elsewhere/x.png",
    }.items():
        storage.write_bytes(url, text.encode())
        found = html_page.problems_of(url)
        assert bool(found) == bool(problem) and all(problem in line for line in found)


@pytest.mark.parametrize(
    ("fault", "tags", "attempts"),
    [
        (TransientError("the store is away"), {}, 2),
        (TransientError("the store is away"), {IN_PROCESS_TAG: "true"}, 1),
        (UsageError("a wrong path"), {}, 1),
        (FlextokError("a check did not hold"), {}, 1),
    ],
)
def test_only_what_may_pass_is_tried_again(
    fault: FlextokError, tags: dict, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    look = data.source_digest

    def failing(corpus, split):
        calls.append(None)
        if len(calls) == 1:
            raise fault
        return look(corpus, split)

    monkeypatch.setattr(data, "source_digest", failing)
    recipe = load_recipe("smoke", ["automation.retry_wait=1s"])
    job = build_definitions([recipe], str(tmp_path)).resolve_implicit_global_asset_job_def()
    done = job.execute_in_process(
        asset_selection=[dg.AssetKey(["smoke", "corpus"])], partition_key="scenes/val", tags=tags, raise_on_error=False
    )
    assert (len(calls), done.success) == (attempts, attempts == 2)
