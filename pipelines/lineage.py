"""OpenLineage events of every run, as JSON lines in <workspace>/lineage/events.jsonl.

A job is an asset, a dataset an asset or partition with the digest of its content as version facet; inputs are the
versions that the run read. Catalogues that speak OpenLineage take the file as it is. `flextok lineage` does not
need it: that reads the artifacts themselves.
"""

import datetime
import uuid
from typing import Any

import dagster as dg

from flextok import storage
from flextok.version import __version__
from pipelines import staleness
from pipelines.graph import Graph
from pipelines.workspace import Workspace

IN_PROCESS_TAG = "flextok/in_process"
PRODUCER = f"urn:flextok-pipelines:{__version__}"


def emit_run(instance: dg.DagsterInstance, workspace: Workspace, graph: Graph, run_id: str) -> None:
    """Append START and COMPLETE for every asset that the run `run_id` materialized."""
    logs = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    lines: list[str] = []
    for record in logs:
        made = record.asset_materialization
        assert made is not None  # of_type asks for records that have one
        lines += _events(instance, workspace, graph, run_id, made.asset_key, made.partition, made=made)
    _append(workspace, lines)


def emit_failure(
    instance: dg.DagsterInstance,
    workspace: Workspace,
    graph: Graph,
    key: dg.AssetKey,
    partition: str | None,
    message: str,
) -> None:
    """Append START and FAIL for an asset whose latest run did not end well."""
    records = instance.get_run_records(limit=1)
    if records:
        run_id = records[0].dagster_run.run_id
        _append(workspace, _events(instance, workspace, graph, run_id, key, partition, error=message))


def lineage_sensor(graph: Graph, workspace_url: str) -> dg.SensorDefinition:
    """Appends the events of runs that Dagster's daemon started; the `flextok` command writes those of its own."""

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS, name="lineage", default_status=dg.DefaultSensorStatus.RUNNING
    )
    def lineage(context: dg.RunStatusSensorContext) -> None:
        if IN_PROCESS_TAG not in context.dagster_run.tags:
            emit_run(context.instance, Workspace(workspace_url), graph, context.dagster_run.run_id)

    return lineage


def events_url(workspace: Workspace) -> str:
    """Where the events of a workspace lie."""
    return workspace.url("lineage", "events.jsonl")


def _events(
    instance: dg.DagsterInstance,
    workspace: Workspace,
    graph: Graph,
    run_id: str,
    key: dg.AssetKey,
    partition: str | None,
    made: dg.AssetMaterialization | None = None,
    error: str | None = None,
) -> list[str]:
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import RunFacet, dataset_version_dataset, error_message_run
    from openlineage.client.serde import Serde

    namespace = workspace.root if "://" in workspace.root else f"file://{workspace.root}"

    def facets(version: str) -> dict[str, Any]:
        return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)}

    inputs = [
        InputDataset(namespace=namespace, name=_dataset(parent, part), facets=facets(version))
        for parts in graph.reads(key, partition).values()
        for parent, part in parts
        if (version := staleness.data_version(staleness.latest_record(instance, parent, part)))
    ]
    outputs = []
    if made is not None and made.tags is not None:
        version = made.tags["dagster/data_version"]
        outputs = [OutputDataset(namespace=namespace, name=_dataset(key, partition), facets=facets(version))]
    failed: dict[str, RunFacet] = (
        {"errorMessage": error_message_run.ErrorMessageRunFacet(message=error, programmingLanguage="python")}
        if error
        else {}
    )
    # One Dagster run may hold several assets; an OpenLineage run has one job.
    identity = str(uuid.uuid5(uuid.UUID(run_id), _dataset(key, partition)))
    job = Job(namespace=namespace, name="/".join(key.path))
    record = instance.get_run_record_by_id(run_id)
    now = datetime.datetime.now(datetime.UTC)
    started = datetime.datetime.fromtimestamp(record.start_time, datetime.UTC) if record and record.start_time else now
    start = RunEvent(
        eventTime=started.isoformat(),
        producer=PRODUCER,
        run=Run(identity),
        job=job,
        eventType=RunState.START,
        inputs=inputs,
    )
    end = RunEvent(
        eventTime=now.isoformat(),
        producer=PRODUCER,
        run=Run(identity, facets=failed),
        job=job,
        eventType=RunState.FAIL if error else RunState.COMPLETE,
        inputs=inputs,
        outputs=outputs,
    )
    return [Serde.to_json(start), Serde.to_json(end)]


def _dataset(key: dg.AssetKey, partition: str | None) -> str:
    return "/".join([*key.path, *([partition] if partition else [])])


def _append(workspace: Workspace, lines: list[str]) -> None:
    if not lines:
        return
    url = events_url(workspace)
    text = "".join(line + "\n" for line in lines).encode()
    if storage.is_local(url):
        path = storage.local_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text)  # one write of whole lines: no reader sees half an event
    else:
        before = storage.read_bytes(url) if storage.exists(url) else b""
        storage.write_bytes(url, before + text)
