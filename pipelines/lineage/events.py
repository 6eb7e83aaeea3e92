"""OpenLineage's words: a run of an asset, what it reads and makes, and the events that tell of it.

Facets stand where the specification has them: the checks of a dataset (dataQualityAssertions) are an input facet, so
the run that makes it tells them as its own tests, and every run that reads it tells them beside what it reads.
"""

import datetime
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from flextok.storage import redact
from flextok.version import __version__
from pipelines.graph import AssetPart
from pipelines.lineage.contents import Contents
from pipelines.lineage.record import Event
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent
    from openlineage.client.facet_v2 import DatasetFacet, InputDatasetFacet, RunFacet

PRODUCER = f"urn:flextok-pipelines:{__version__}"
DAGSTER_RUN = "dagster_run_id"

Check = dg.AssetCheckResult | dg.AssetCheckEvaluation


@dataclass(frozen=True)
class Subject:
    """What the events of one run are about. A run of Dagster's may hold several assets, one of OpenLineage's has one job."""

    namespace: str
    job: str
    dataset: str
    dagster_run: str

    @classmethod
    def of(cls, workspace: Workspace, part: AssetPart, dagster_run: str) -> "Subject":
        """The making of `part` in a run of Dagster's."""
        return cls(namespace_of(workspace), "/".join(part[0].path), dataset_name(part), dagster_run)

    @property
    def run_id(self) -> str:
        """The id of the run in OpenLineage, the same in each of its events."""
        return str(uuid.uuid5(uuid.UUID(self.dagster_run), self.dataset))


def namespace_of(workspace: Workspace) -> str:
    """The namespace of a workspace's jobs and datasets."""
    return redact(workspace.root) if "://" in workspace.root else f"file://{workspace.root}"


def dataset_name(part: AssetPart) -> str:
    """An asset or partition as a dataset."""
    key, partition = part
    return "/".join([*key.path, *([partition] if partition else [])])


def event_line(
    subject: Subject,
    kind: str,
    inputs: "Sequence[InputDataset]",
    outputs: "Sequence[OutputDataset]" = (),
    facets: "Mapping[str, RunFacet] | None" = None,
) -> str:
    """An event that happens now, as a line of JSON."""
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState, set_producer
    from openlineage.client.facet_v2 import tags_run
    from openlineage.client.serde import Serde

    set_producer(PRODUCER)
    # By it the end of a run that was killed is found in Dagster's records.
    tag = tags_run.TagsRunFacetFields(DAGSTER_RUN, subject.dagster_run, "DAGSTER")
    event = RunEvent(
        eventTime=_now(),
        producer=PRODUCER,
        run=Run(subject.run_id, facets={"tags": tags_run.TagsRunFacet([tag]), **(facets or {})}),
        job=Job(namespace=subject.namespace, name=subject.job),
        eventType=RunState(kind),
        inputs=list(inputs),
        outputs=list(outputs),
    )
    return Serde.to_json(event)


def failure_line(start: Event, message: str) -> str:
    """The FAIL of a run of which there is only the START, as a line of JSON."""
    from openlineage.client.serde import Serde

    run = start["run"]
    facets = {**run["facets"], **{name: Serde.to_dict(facet) for name, facet in failure(message).items()}}
    return Serde.to_json({**start, "eventTime": _now(), "eventType": "FAIL", "run": {**run, "facets": facets}})


def failure(message: str) -> "dict[str, RunFacet]":
    """Why a run failed."""
    from openlineage.client.event_v2 import set_producer
    from openlineage.client.facet_v2 import error_message_run

    set_producer(PRODUCER)
    return {"errorMessage": error_message_run.ErrorMessageRunFacet(redact(message), programmingLanguage="python")}


def tests(checks: Sequence[Check]) -> "dict[str, RunFacet]":
    """How the checks of what a run made came out."""
    from openlineage.client.facet_v2 import test_run

    found = [
        test_run.TestExecution(
            name=check.check_name or "",
            status="pass" if check.passed else "fail",
            severity=_severity(check),
            description=redact(check.description) if check.description else None,
        )
        for check in checks
    ]
    return {"test": test_run.TestRunFacet(found)} if found else {}


def input_dataset(
    namespace: str, name: str, version: str, contents: Contents | None, checks: Sequence[Check]
) -> "InputDataset":
    """A dataset that a run reads: its version, its counts, and how it was checked when it was made."""
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import data_quality_assertions_dataset, data_quality_metrics_input_dataset

    facets: dict[str, InputDatasetFacet] = {}
    if contents is not None:
        facets["dataQualityMetrics"] = data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet(
            columnMetrics={}, rowCount=contents.rows, bytes=contents.bytes, fileCount=contents.files
        )
    if checks:
        facets["dataQualityAssertions"] = data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
            [
                data_quality_assertions_dataset.Assertion(
                    assertion=check.check_name or "",
                    success=check.passed,
                    severity=_severity(check),
                    description=redact(check.description) if check.description else None,
                )
                for check in checks
            ]
        )
    return InputDataset(namespace, name, facets, facets=_version(version))


def output_dataset(namespace: str, name: str, version: str, contents: Contents | None) -> "OutputDataset":
    """A dataset that a run made: its version, its columns and its counts."""
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import (
        data_quality_metrics_dataset,
        output_statistics_output_dataset,
        schema_dataset,
    )

    facets = _version(version)
    if contents is None:
        return OutputDataset(namespace, name, facets=facets)
    facets["schema"] = schema_dataset.SchemaDatasetFacet(
        [
            schema_dataset.SchemaDatasetFacetFields(column.name, column.type, column.description, place)
            for place, column in enumerate(contents.columns, 1)
        ]
    )
    facets["dataQualityMetrics"] = data_quality_metrics_dataset.DataQualityMetricsDatasetFacet(
        columnMetrics={}, rowCount=contents.rows, bytes=contents.bytes, fileCount=contents.files
    )
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=contents.rows, size=contents.bytes, fileCount=contents.files
    )
    return OutputDataset(namespace, name, {"outputStatistics": statistics}, facets=facets)


def dagster_run_of(event: Event) -> str | None:
    """The run of Dagster's that an event tells of; None where an earlier version wrote it."""
    tags = event["run"].get("facets", {}).get("tags", {}).get("tags", [])
    return next((tag["value"] for tag in tags if tag["key"] == DAGSTER_RUN), None)


def run_event(event: Event) -> "RunEvent":
    """A recorded event as an object of the client, which filters and tags those it sends."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import tags_run

    run_id, facets = event["run"]["runId"], dict(event["run"].get("facets", {}))
    if "tags" in facets:  # the client adds its own to it
        tags = [tags_run.TagsRunFacetFields(**tag) for tag in facets["tags"]["tags"]]
        facets["tags"] = tags_run.TagsRunFacet(tags)
    return RunEvent(
        eventTime=event["eventTime"],
        producer=event["producer"],
        run=Run(run_id, facets=facets),
        job=Job(**event["job"]),
        eventType=RunState(event["eventType"]),
        inputs=[InputDataset(**item) for item in event.get("inputs", [])],
        outputs=[OutputDataset(**item) for item in event.get("outputs", [])],
    )


def _version(version: str) -> "dict[str, DatasetFacet]":
    from openlineage.client.facet_v2 import dataset_version_dataset

    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)}


def _severity(check: Check) -> str:
    return "error" if check.severity is dg.AssetCheckSeverity.ERROR else "warn"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()
