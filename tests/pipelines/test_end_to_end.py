"""The shrunk smoke profile through Dagster and Ray: files, lineage, staleness, failure and recovery."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from shrunk_smoke import Built

from pipelines import cli

pytestmark = pytest.mark.slow


def must_run(states: dict[str, dict]) -> set[str]:
    return {name for name, item in states.items() if item["reasons"]}


def refresh(built: Built, capsys, *sets: str) -> list[str]:
    """Labels of what ran."""
    capsys.readouterr()
    assert cli.run(["refresh", *built.arguments(*sets)]) == 0
    lines = capsys.readouterr().err.splitlines()
    return [line.removesuffix(": start") for line in lines if line.endswith(": start")]


def test_every_artifact_stands_where_the_contract_says(built: Built):
    found = {str(path.relative_to(built.workspace)) for path in built.workspace.rglob("*") if path.is_file()}
    for split, shards in (("train", 3), ("val", 2)):
        folder = f"corpora/scenes/{split}"
        names = [
            "manifest.parquet",
            "rejects.parquet",
            "manifest.json",
            *(f"shards/{i:06d}.tar" for i in range(shards)),
        ]
        assert {f"{folder}/{name}" for name in names} <= found
        (tokenizer,) = (built.workspace / "tokens" / "scenes" / split).iterdir()
        files = {f"tokens/scenes/{split}/{tokenizer.name}/{name}" for name in ("manifest.json", "000000.parquet")}
        assert files <= found
    for kind in ("vae", "tokenizer", "prior"):
        (checkpoint,) = (path for path in (built.workspace / "checkpoints" / kind).iterdir() if path.name[0] != ".")
        for name in ("model.safetensors", "config.yaml", "provenance.json", "history.parquet"):
            assert f"checkpoints/{kind}/{checkpoint.name}/{name}" in found
    assert any(name.startswith("samples/") and name.endswith(".png") for name in found)
    assert sum(name.startswith("evaluation/") and name.endswith("/metrics.json") for name in found) == 3
    assert sum(name.endswith("/report/index.html") for name in found) == 1
    assert not [name for name in found if "/.tmp-" in name]


def test_token_shards_pair_with_the_image_shards(built: Built):
    (tokens,) = (built.workspace / "tokens" / "scenes" / "train").iterdir()
    tables = [pq.read_table(path) for path in sorted(tokens.glob("*.parquet"))]
    assert [table.num_rows for table in tables] == [32, 32, 32]
    assert {table.schema.metadata[b"flextok.tokenizer"].decode() for table in tables} == {tokens.name}


def test_everything_is_fresh_and_a_second_refresh_runs_nothing(built: Built, capsys):
    states = built.states(capsys)
    assert {item["status"] for item in states.values()} == {"fresh"} and len(states) == 14
    assert cli.run(["refresh", *built.arguments()]) == 0
    shown = capsys.readouterr()
    assert "nothing to do: every asset is fresh" in shown.err and ": start" not in shown.err
    assert Path(shown.out.strip()).name == "index.html" and Path(shown.out.strip()).is_file()


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ("report.title=Other", {"report"}),
        ("tokenizer.train.steps=7", {"tokenizer"}),
        ("prior.train.optimizer.lr=0.5", {"prior"}),
        ("evaluation.samples.num=16", {"samples", "fid"}),
        ("tokens.keep=2", {"token_shards[scenes/train]", "token_shards[scenes/val]"}),
        ("compute={train_workers: 1, num_cpus: 2, tokenize_actors: [1, 4], threads: 2}", set()),
        ("compute.address=auto", set()),
        ("evaluation.batch_size=5", set()),
        ("evaluation.precision=bfloat16", {"reconstructions", "samples", "fid"}),
        ("tokenizer.train.log_every=7", set()),
        ("latents.train.checkpoint_every=7", set()),
        ("prior.train.validate_every=1", set()),
    ],
)
def test_a_changed_setting_makes_stale_what_reads_it(built: Built, capsys, change: str, stale: set[str]):
    assert must_run(built.states(capsys, change)) == stale


def test_what_depends_on_a_stale_asset_is_told_to_wait(built: Built, capsys):
    states = built.states(capsys, "tokenizer.train.steps=7")
    assert states["tokenizer"]["reasons"] == ["settings changed: tokenizer.train.steps: 6 -> 7"]
    waiting = {name for name, item in states.items() if item["status"] == "stale" and item["waits_for"]}
    assert waiting == set(states) - {
        "corpus[scenes/train]", "corpus[scenes/val]", "image_shards[scenes/train]", "image_shards[scenes/val]",
        "latents", "tokenizer", "reference",
    }  # fmt: skip


def test_a_changed_title_runs_only_the_report(built: Built, capsys):
    assert refresh(built, capsys, "report.title=Other <title>") == ["report"]
    assert refresh(built, capsys) == ["report"]
    assert refresh(built, capsys) == []


def test_deleted_files_are_made_again_and_nothing_else(built: Built, capsys):
    uri = built.states(capsys)["reconstructions"]["uri"]
    shutil.rmtree(uri)
    gone = built.states(capsys)["reconstructions"]
    assert gone["status"] == "missing" and "gone" in gone["reasons"][0]
    assert refresh(built, capsys) == ["reconstructions"]
    assert Path(uri, "metrics.json").is_file()


def test_lineage_comes_from_the_files_alone(built: Built, capsys, tmp_path):
    """Also after the workspace was moved, and without Dagster's records."""
    report = Path(built.states(capsys)["report"]["uri"])
    moved = tmp_path / "moved"
    shutil.copytree(built.workspace, moved, ignore=shutil.ignore_patterns("dagster"))
    assert cli.run(["lineage", "--json", str(moved / report.relative_to(built.workspace))]) == 0
    nodes: dict[str, int] = {}

    def walk(node: dict) -> None:
        assert node["found"] and node["uri"].startswith(str(moved))
        nodes[node["kind"]] = nodes.get(node["kind"], 0) + 1
        for item in node["inputs"]:
            walk(item)

    walk(json.loads(capsys.readouterr().out))
    assert {
        "report",
        "reference",
        "reconstructions",
        "generation",
        "samples",
        "prior",
        "tokens",
        "tokenizer",
        "vae",
        "corpus",
    } == set(nodes)


def test_openlineage_events_have_edges_and_versions(built: Built, capsys):
    states = built.states(capsys)
    lines = (built.workspace / "lineage" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    runs: dict[str, list[str]] = {}
    for event in events:
        runs.setdefault(event["run"]["runId"], []).append(event["eventType"])
    assert all(kinds[0] == "START" and kinds[1] in ("COMPLETE", "FAIL") for kinds in runs.values())
    prior = next(
        event for event in events if event["job"]["name"] == "smoke/prior" and event["eventType"] == "COMPLETE"
    )
    versions = {
        item["name"]: item["facets"]["version"]["datasetVersion"] for item in prior["inputs"] + prior["outputs"]
    }
    assert versions == {
        "smoke/token_shards/scenes/train": states["token_shards[scenes/train]"]["digest"],
        "smoke/token_shards/scenes/val": states["token_shards[scenes/val]"]["digest"],
        "smoke/prior": states["prior"]["digest"],
    }
    shards = next(event for event in events if event["job"]["name"] == "smoke/tokenizer")
    assert {item["name"] for item in shards["inputs"]} == {"smoke/latents", "smoke/image_shards/scenes/train"}


def test_a_failed_stage_leaves_the_rest_usable(built: Built, capsys):
    before = built.states(capsys)
    capsys.readouterr()
    diverges = "tokenizer.train.optimizer.lr=1e30"
    assert cli.run(["refresh", *built.arguments(diverges)]) == 1
    shown = capsys.readouterr()
    last = shown.err.splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in shown.err
    assert must_run(built.states(capsys, diverges)) == {"tokenizer"}
    after = built.states(capsys)
    assert after == before


def test_other_profiles_share_the_workspace_in_peace(built: Built, capsys):
    states = built.states(capsys, "name=other")
    assert {item["status"] for item in states.values()} == {"missing"}
    assert {item["status"] for item in built.states(capsys).values()} == {"fresh"}


def test_one_writer_at_a_time(built: Built, capsys):
    from pipelines.workspace import Workspace

    with Workspace(str(built.workspace)).lock():
        assert cli.run(["refresh", *built.arguments()]) == 1
    assert "found another run or refresh" in capsys.readouterr().err
