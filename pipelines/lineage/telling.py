"""What a run tells while it works: around the body of every asset, be it run by a command, by the UI or by the daemon."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from pipelines import staleness
from pipelines.graph import AssetPart
from pipelines.lineage import record
from pipelines.lineage.contents import contents_of
from pipelines.lineage.events import (
    Subject,
    dataset_name,
    event_line,
    failure,
    input_dataset,
    output_dataset,
    tests,
)
from pipelines.lineage.quietly import quietly
from pipelines.lineage.sender import sender_of
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import RunFacet

RUNNING_EVERY_S = 300.0


class Telling:
    """The events of one run of an asset. Nothing that goes wrong with them reaches the run."""

    def __init__(self, workspace: Workspace, subject: Subject):
        self.result: dg.MaterializeResult | None = None
        """What the run made, once it has."""
        self._workspace, self._subject = workspace, subject
        self._inputs: list[InputDataset] = []
        self._unwritten: list[str] = []
        self._one_at_a_time = threading.Lock()
        self._ended = threading.Event()

    def start(self, inputs: "Callable[[], list[InputDataset]]") -> None:
        """START, and RUNNING now and then until the end."""
        with self._quietly():
            self._inputs = inputs()
        self._tell("START")
        with self._quietly():
            threading.Thread(target=self._keep_telling, name="lineage-running", daemon=True).start()

    def fail(self, message: str) -> None:
        """FAIL, and why."""
        self._ended.set()
        with self._quietly():
            self._tell("FAIL", facets=failure(message))

    def complete(self) -> None:
        """COMPLETE with what was made; FAIL where a check of it did not hold that must."""
        self._ended.set()
        with self._quietly():
            checks = list(self.result.check_results or []) if self.result is not None else []
            facets, outputs = tests(checks), []
            with self._quietly():
                outputs = [_output(self._subject, self.result)] if self.result is not None else []
            broken = [check for check in checks if not check.passed and check.severity is dg.AssetCheckSeverity.ERROR]
            if broken:
                why = "; ".join(f"{check.check_name}: {check.description}" for check in broken)
                facets = {**facets, **failure(f"a check did not hold: {why}")}
            self._tell("FAIL" if broken else "COMPLETE", outputs, facets)

    def _keep_telling(self) -> None:
        while not self._ended.wait(RUNNING_EVERY_S):
            self._tell("RUNNING")

    def _tell(
        self, kind: str, outputs: "Sequence[OutputDataset]" = (), facets: "Mapping[str, RunFacet] | None" = None
    ) -> None:
        with self._quietly(), self._one_at_a_time:
            if kind == "RUNNING" and self._ended.is_set():
                return
            # What could not be written is kept, and goes with the next.
            self._unwritten.append(event_line(self._subject, kind, self._inputs, outputs, facets))
            record.append(self._workspace, self._unwritten)
            self._unwritten.clear()
        with self._quietly():
            sender_of(self._workspace).wake()

    def _quietly(self) -> contextlib.AbstractContextManager[None]:
        return quietly(f"record lineage in {record.events_url(self._workspace)}")


@contextlib.contextmanager
def telling(
    instance: dg.DagsterInstance,
    workspace: Workspace,
    run_id: str,
    part: AssetPart,
    reads: Callable[[], Sequence[AssetPart]],
) -> Iterator[Telling]:
    """Tell of a run while the block makes `part` of what it `reads`, and how it ends."""
    subject = Subject.of(workspace, part, run_id)
    told = Telling(workspace, subject)
    told.start(lambda: _inputs(instance, workspace, subject.namespace, reads()))
    try:
        yield told
    except BaseException as error:
        told.fail(_message(error))
        raise
    told.complete()


def _inputs(
    instance: dg.DagsterInstance, workspace: Workspace, namespace: str, parts: Sequence[AssetPart]
) -> "list[InputDataset]":
    """The latest versions of `parts`: those that a run reads which starts now."""
    found = []
    for part in parts:
        latest = staleness.latest_record(instance, *part)
        if version := staleness.data_version(latest):
            path = staleness.metadata_of(latest).get("path")
            contents = contents_of(workspace.resolve(path)) if path else None
            checks = staleness.checks_of(instance, latest.run_id, part) if latest else []
            found.append(input_dataset(namespace, dataset_name(part), version, contents, checks))
    return found


def _output(subject: Subject, result: dg.MaterializeResult) -> "OutputDataset":
    version = result.data_version.value if result.data_version is not None else ""
    url = (result.metadata or {}).get("dagster/uri")
    contents = contents_of(url) if isinstance(url, str) else None
    return output_dataset(subject.namespace, subject.dataset, version, contents)


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | dg.DagsterExecutionInterruptedError):
        return "interrupted"
    return f"{type(error).__name__}: {error}"
