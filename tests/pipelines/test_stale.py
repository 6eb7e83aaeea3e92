"""What must run after which change, and the records of Dagster that `pipelines.staleness` reads."""

import hashlib
import shutil
import time

import dagster as dg
import pytest
from asset_chain import Chain

from flextok import storage
from flextok.errors import FlextokError, UsageError
from flextok.provenance import make_provenance
from pipelines import staleness
from pipelines.definitions import build_definitions
from pipelines.graph import Graph
from pipelines.recipe import load_recipe
from pipelines.workspace import Workspace

ALL = [
    "source[c/train]", "source[c/val]", "shards[c/train]", "shards[c/val]", "model",
    "tokens[c/train]", "tokens[c/val]", "report",
]  # fmt: skip


@pytest.fixture
def built(tmp_path) -> Chain:
    chain = Chain(tmp_path)
    assert chain.refresh() == ALL
    chain.ran.clear()
    return chain


def test_everything_is_missing_at_first(tmp_path):
    states = Chain(tmp_path).survey()
    assert list(states) == ALL
    assert {state.status for state in states.values()} == {"missing"}


def test_a_second_refresh_runs_nothing(built: Chain):
    assert built.refresh() == [] and built.ran == []
    assert {state.status for state in built.survey().values()} == {"fresh"}


# (what is changed, what must run at once, what has run when all is fresh again)
MATRIX = {
    "code of a middle stage, same data: early cut-off": (
        lambda c: c.code.update(model="2"),
        {"model"},
        ["model"],
    ),
    "code of a middle stage, new data: everything after it, one edge a wave": (
        lambda c: (c.code.update(model="2"), c.data.update(model="data-2")),
        {"model"},
        ["model", "tokens[c/train]", "tokens[c/val]"],
    ),
    "new data all the way down": (
        lambda c: (c.code.update(model="2"), c.data.update({"model": "2", "tokens[c/val]": "2"})),
        {"model"},
        ["model", "tokens[c/train]", "tokens[c/val]", "report"],
    ),
    "code of the last stage": (lambda c: c.code.update(report="2"), {"report"}, ["report"]),
    "source of the val split: the model is not touched": (
        lambda c: (
            c.listing.update({"c/val": "listing-2"}),
            c.data.update({"shards[c/val]": "2", "tokens[c/val]": "2"}),
        ),
        {"source[c/val]"},
        ["source[c/val]", "shards[c/val]", "tokens[c/val]", "report"],
    ),
    "source of the train split": (
        lambda c: (c.listing.update({"c/train": "listing-2"}), c.data.update({"shards[c/train]": "2"})),
        {"source[c/train]"},
        ["source[c/train]", "shards[c/train]", "model", "tokens[c/train]"],
    ),
    "source touched, same pictures": (
        lambda c: c.listing.update({"c/train": "listing-2"}),
        {"source[c/train]"},
        ["source[c/train]", "shards[c/train]"],
    ),
    "files of one artifact deleted": (lambda c: shutil.rmtree(c.root / "model"), {"model"}, ["model"]),
    "code of two stages apart": (
        lambda c: c.code.update(source="2", report="2"),
        {"source[c/train]", "source[c/val]", "report"},
        ["source[c/train]", "source[c/val]", "report"],
    ),
}


@pytest.mark.parametrize("case", MATRIX)
def test_a_change_runs_what_depends_on_it_and_nothing_else(built: Chain, case: str):
    change, at_once, in_the_end = MATRIX[case]
    change(built)
    assert built.must_run() == at_once
    assert built.refresh() == in_the_end
    assert built.refresh() == []
    assert {state.status for state in built.survey().values()} == {"fresh"}


def test_status_says_why_and_what_waits(built: Chain):
    built.code["model"] = "2"
    states = built.survey()
    assert states["model"].reasons == ('settings changed: section.version: "1" -> "2"',)
    assert states["tokens[c/val]"].status == "stale" and states["tokens[c/val]"].waits_for == ("model",)
    assert states["report"].waits_for == ("tokens[c/train]", "tokens[c/val]")
    assert states["shards[c/train]"].status == "fresh"


def test_a_pattern_chooses_partitions(built: Chain):
    executor = built.executor()
    executor.run(executor.parts(executor.select("shards,tokens,report"), "*/val"))
    assert built.ran == ["shards[c/val]", "tokens[c/val]"]
    with pytest.raises(
        UsageError, match="expected a partition of the selected assets like 'd/\\*', found c/train, c/val"
    ):
        executor.parts(executor.select("shards"), "d/*")
    with pytest.raises(UsageError, match="found that they have none"):
        executor.parts(executor.select("report"), "c/*")


def test_reads_that_came_or_went_are_told(built: Chain):
    built.extra_dep = True
    assert built.survey()["report"].reasons == ("it has a new dependency on model",)
    assert built.refresh() == ["report"]
    built.extra_dep = False
    assert built.survey()["report"].reasons == ("it does not depend on model any more",)


def test_what_was_made_before_a_later_read_remains_valid(built: Chain):
    built.extra_dep = built.is_added = True
    assert built.survey()["report"].status == "fresh"
    built.data["model"], built.code["model"] = "data-2", "2"
    built.refresh()
    built.code["report"] = "2"
    assert built.refresh() == ["report"]  # which has read the model by now
    built.data["model"], built.code["model"] = "data-3", "3"
    assert "report" in built.refresh()


def test_of_two_partitions_the_one_that_changed_is_named(built: Chain):
    built.code["tokens"] = "2"
    built.data["tokens[c/val]"] = "2"
    executor = built.executor()
    executor.run(executor.parts(executor.select("tokens")))
    assert built.survey()["report"].reasons == ("tokens[c/val] has other data",)


def test_hundreds_of_partitions_are_judged_in_seconds(tmp_path):
    corpora = dg.StaticPartitionsDefinition([f"c{number:03d}/train" for number in range(250)])

    @dg.asset(partitions_def=corpora, code_version="1")
    def shards(context: dg.AssetExecutionContext) -> None: ...

    workspace = Workspace(str(tmp_path / "w"))
    with workspace.instance() as instance:
        for name in corpora.get_partition_keys():
            digest = f"data of {name}"
            url = workspace.url("shards", name)
            storage.write_json(storage.join(url, "provenance.json"), make_provenance("corpus", digest, [], {}, url))
            made = dg.AssetMaterialization(
                "shards", partition=name, metadata={"path": workspace.relative(url), "settings": '{"section": {"version": "1"}}'},
                tags={"dagster/data_version": digest, "dagster/code_version": "1"},
            )  # fmt: skip
            instance.report_runless_asset_event(made)
        started = time.monotonic()
        states = staleness.survey(Graph(shards.specs), instance, Chain(tmp_path), workspace)
        assert time.monotonic() - started < 10  # some 3.5 ms each on an idle machine
    assert len(states) == 250 and {state.status for state in states} == {"fresh"}


def test_files_of_another_artifact_count_as_missing(built: Chain):
    path = built.root / "report" / "all" / "provenance.json"
    path.write_text(path.read_text().replace("data-1", "data-9"))
    assert "holds data-9 now, not data-1" in built.survey()["report"].reasons[0]
    assert built.refresh() == ["report"]


def test_an_unreachable_source_is_told(built: Chain):
    built.listing["unreachable"] = ""
    assert built.survey()["source[c/val]"].reasons == ("its source cannot be listed: nothing there",)


def test_a_failure_stops_the_refresh_and_the_next_one_goes_on_from_there(tmp_path):
    chain = Chain(tmp_path, broken={"model"})
    with pytest.raises(FlextokError, match="model failed: RuntimeError: out of luck"):
        chain.refresh()
    assert chain.ran == ALL[:5]
    chain.broken.clear()
    chain.ran.clear()
    assert chain.refresh() == ALL[4:]


def test_a_result_whose_check_did_not_hold_is_built_again_before_what_needs_it(tmp_path):
    """Dagster records such a result, and would call it fresh."""
    chain = Chain(tmp_path, unsound={"model"})
    with pytest.raises(FlextokError, match="sound"):
        chain.refresh()
    assert chain.instance.get_latest_materialization_event(dg.AssetKey("model")) is not None
    assert chain.survey()["model"].status == "stale" and "tokens[c/train]" not in chain.ran
    chain.unsound.clear()
    assert chain.refresh() == ALL[4:]


def test_run_needs_the_inputs_of_what_is_selected(tmp_path):
    chain = Chain(tmp_path)
    executor = chain.executor()
    with pytest.raises(FlextokError, match="expected shards to be there for model"):
        executor.run(executor.parts(executor.select("model")))
    executor.run(executor.parts(executor.select("+shards")))
    executor.run(executor.parts(executor.select("model")))
    assert chain.ran == ALL[:5]


def test_run_builds_again_what_is_fresh(built: Chain):
    executor = built.executor()
    executor.run(executor.parts(executor.select("tokens")))
    assert built.ran == ["tokens[c/train]", "tokens[c/val]"]


def test_runs_of_killed_commands_are_closed(built: Chain):
    run = built.instance.create_run_for_job(
        built.definitions().resolve_implicit_global_asset_job_def(), tags={"flextok/in_process": "true"}
    )
    built.instance.handle_run_event(run.run_id, dg.DagsterEvent("PIPELINE_START", job_name=run.job_name))
    assert built.instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.STARTED
    built.refresh()
    assert built.instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.FAILURE


class TestDagster:
    """What Dagster records, on which `survey` is built."""

    def test_versions_of_code_and_data_are_recorded_in_tags(self, built: Chain):
        record = staleness.latest_record(built.instance, dg.AssetKey("model"), None)
        tags = record.asset_materialization.tags
        assert tags["dagster/code_version"] == "1" and tags["dagster/data_version"] == "data-1"

    def test_of_what_was_read_the_version_or_the_hash_of_all_partitions_is_recorded(self, built: Chain):
        tags = staleness.latest_record(built.instance, dg.AssetKey("tokens"), "c/val").asset_materialization.tags
        assert tags["dagster/input_data_version/model"] == "data-1"
        assert tags["dagster/input_data_version/shards"] == hashlib.sha256(b"data-1").hexdigest()
        tags = staleness.latest_record(built.instance, dg.AssetKey("report"), None).asset_materialization.tags
        assert tags["dagster/input_data_version/tokens"] == hashlib.sha256(b"data-1data-1").hexdigest()

    def test_fan_in_stays_far_below_a_hundred_where_it_records_something_else(self, tmp_path):
        definitions = build_definitions([load_recipe("smoke")], str(tmp_path))
        graph = Graph(definitions.resolve_all_asset_specs())
        widths = [
            len(parts)
            for key in graph.keys
            for partition in graph.partitions(key)
            for parts in graph.reads(key, partition).values()
        ]
        assert max(widths) == 2
