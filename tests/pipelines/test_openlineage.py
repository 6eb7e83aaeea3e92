"""Runs that Dagster's daemon starts leave the same events as those of the command, once."""

import json

import dagster as dg
import pytest
from asset_chain import Chain

from flextok.errors import FlextokError
from pipelines.lineage import lineage_sensor


def events(chain: Chain) -> list[dict]:
    path = chain.root / "lineage" / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def notify(chain: Chain, run_id: str) -> None:
    sensor = lineage_sensor(chain.executor().graph, str(chain.root))
    definitions = dg.Definitions.merge(chain.definitions(), dg.Definitions(sensors=[sensor]))
    run = chain.instance.get_run_by_id(run_id)
    (record,) = chain.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_SUCCESS).records
    context = dg.build_run_status_sensor_context(
        sensor_name="lineage",
        dagster_instance=chain.instance,
        dagster_run=run,
        dagster_event=record.event_log_entry.dagster_event,
        repository_def=definitions.get_repository_def(),
    )
    sensor(context)


def test_a_run_of_the_daemon_is_told_with_its_edges(tmp_path):
    chain = Chain(tmp_path)
    executor = chain.executor()
    executor.run(executor.parts(executor.select("+shards")))
    told = len(events(chain))
    job = chain.definitions().resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=chain.instance, asset_selection=[dg.AssetKey("model")])
    notify(chain, result.run_id)
    start, complete = events(chain)[told:]
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"] and start["eventTime"] <= complete["eventTime"]
    assert [item["name"] for item in complete["inputs"]] == ["shards/c/train"]
    assert complete["outputs"][0]["name"] == "model"
    assert complete["outputs"][0]["facets"]["version"]["datasetVersion"] == "data-1"


def test_a_run_of_the_command_is_told_once(tmp_path):
    chain = Chain(tmp_path)
    chain.refresh()
    told = len(events(chain))
    assert told == 2 * len(chain.ran)
    for run in chain.instance.get_runs():
        notify(chain, run.run_id)
    assert len(events(chain)) == told


def test_a_failure_is_told_with_its_message(tmp_path):
    chain = Chain(tmp_path, broken={"model"})
    with pytest.raises(FlextokError, match="out of luck"):
        chain.refresh()
    last = events(chain)[-1]
    assert last["eventType"] == "FAIL" and "out of luck" in last["run"]["facets"]["errorMessage"]["message"]
    assert last["outputs"] == []
