"""Running assets in this process, one at a time, with one line for each: shared by `run` and `refresh`."""

import contextlib
import fnmatch
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import dagster as dg

from flextok.errors import FlextokError, UsageError
from flextok.runtime import interrupts
from pipelines import staleness
from pipelines.alive import PROCESS_IS_GONE
from pipelines.assets import IN_PROCESS_TAG
from pipelines.definitions import build_definitions
from pipelines.facts import RecipeFacts
from pipelines.graph import AssetPart, Graph, label
from pipelines.lineage import record
from pipelines.lineage.endings import tell_ends
from pipelines.lineage.quietly import quietly
from pipelines.metadata import ONLY_ON_PAGES
from pipelines.recipe import Recipe
from pipelines.staleness import AssetState, Facts
from pipelines.workspace import Workspace

logger = logging.getLogger(__name__)

QUIET_LOGS = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
MAX_WAVES = 32


class Executor:
    """Materializes assets of one profile in one workspace, and knows what is out of date there."""

    def __init__(
        self,
        defs: dg.Definitions,
        instance: dg.DagsterInstance,
        facts: Facts,
        workspace: Workspace,
    ):
        self.defs, self.instance, self.workspace = defs, instance, workspace
        self._facts = facts
        self._job = defs.resolve_implicit_global_asset_job_def()
        self.graph = Graph(defs.resolve_all_asset_specs())

    def survey(self) -> list[AssetState]:
        """The state of every asset and partition."""
        return staleness.survey(self.graph, self.instance, self._facts, self.workspace)

    def select(self, expression: str | None) -> list[dg.AssetKey]:
        """The selected assets in an order in which they can be built; raises UsageError for an unknown name."""
        keys = self.graph.keys
        if expression is None:
            return keys
        names = {key.path[-1]: key for key in keys}
        try:
            chosen = dg.AssetSelection.from_string(_qualify(expression, names)).resolve(self.defs.resolve_asset_graph())
        except Exception as error:  # noqa: BLE001 - the selection language raises its parser's own kinds
            raise UsageError(
                f"expected a selection of the assets {', '.join(names)} (such as 'tokenizer+' or 'token_shards,prior'), "
                f"found {expression!r}: {str(error).splitlines()[0]}"
            ) from None
        if not chosen:
            raise UsageError(f"expected a selection of the assets {', '.join(names)}, found none in {expression!r}")
        return [key for key in keys if key in chosen]

    def parts(self, keys: list[dg.AssetKey], pattern: str | None = None) -> list[AssetPart]:
        """The partitions of `keys`, of which a shell `pattern` chooses some; raises UsageError where it fits none."""
        parts = [(key, partition) for key in keys for partition in self.graph.partitions(key)]
        if pattern is None:
            return parts
        chosen = [part for part in parts if part[1] is not None and fnmatch.fnmatchcase(part[1], pattern)]
        if not chosen:
            known = ", ".join(dict.fromkeys(name for _, name in parts if name is not None)) or "that they have none"
            raise UsageError(f"expected a partition of the selected assets like '{pattern}', found {known}")
        return chosen

    def run(self, parts: list[AssetPart]) -> None:
        """Materialize assets and partitions in order; stops at the first failure."""
        self._close_dead_runs()
        for key, partition in parts:
            self._require_inputs(key)
            self._materialize(key, partition)

    def refresh(self) -> list[str]:
        """Materialize what is out of date, in waves, until nothing is; the labels of what ran."""
        self._close_dead_runs()
        done: list[str] = []
        for _ in range(MAX_WAVES):
            wave = staleness.next_wave(self.graph, self.survey())
            if not wave:
                return done
            for state in wave:
                logger.info("%s: %s", state.label, "; ".join(state.reasons))
                self._materialize(state.key, state.partition)
                done.append(state.label)
        raise FlextokError(
            f"expected the graph to settle in {MAX_WAVES} waves, found it still stale; see `flextok status`"
        )

    def report_path(self) -> str | None:
        """The page of the latest report, None when there is none."""
        key = next(key for key in self.graph.keys if key.path[-1] == "report")
        path = staleness.metadata_of(staleness.latest_record(self.instance, key, None)).get("html")
        return self.workspace.resolve(path) if path else None

    def _require_inputs(self, key: dg.AssetKey) -> None:
        for parent in self.graph.parents(key):
            if not self.instance.get_latest_materialization_event(parent):
                raise FlextokError(
                    f"expected {label(parent, None)} to be there for {label(key, None)}, found it was never "
                    f"made; use `--select '+{label(key, None)}'` or `flextok refresh`"
                )

    def _materialize(self, key: dg.AssetKey, partition: str | None) -> None:
        # Dagster's records are not interrupted in the middle; what an asset does is (see assets).
        with interrupts.held():
            self._materialize_held(key, partition)

    def _materialize_held(self, key: dg.AssetKey, partition: str | None) -> None:
        name = label(key, partition)
        logger.info("%s: start", name)
        started = time.monotonic()
        try:
            result = self._job.execute_in_process(
                instance=self.instance,
                asset_selection=[key],
                partition_key=partition,
                run_config=QUIET_LOGS,
                tags={IN_PROCESS_TAG: "true", "dagster/max_retries": "0"},  # a command is its user's to repeat
                raise_on_error=True,
            )
        except BaseException as error:
            if isinstance(error, dg.DagsterExecutionInterruptedError):
                raise KeyboardInterrupt from error
            if isinstance(error, Exception) and not isinstance(error, FlextokError | OSError):
                raise FlextokError(f"{name} failed: {_one_line(error)}") from error
            raise
        record = staleness.latest_record(self.instance, key, partition)
        for check in result.get_asset_check_evaluations():
            if not check.passed:
                logger.warning("%s: %s", name, check.description)
        logger.info("%s: done in %.0f s, %s", name, time.monotonic() - started, _summary(record))

    def _close_dead_runs(self) -> None:
        """Mark runs of killed commands as failed: the caller holds the workspace's lock, so none is alive.

        Their places in the pool are given back too; else the next run would wait for them without end. Lineage has their
        end too.
        """
        unfinished = dg.RunsFilter(
            statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING], tags={IN_PROCESS_TAG: "true"}
        )
        for run in self.instance.get_runs(unfinished):
            self.instance.report_run_failed(run, PROCESS_IS_GONE)
        log = self.instance.event_log_storage
        for run_id in log.get_concurrency_run_ids():
            run = self.instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                log.free_concurrency_slots_for_run(run_id)
        with quietly(f"tell the ends of runs in {record.events_url(self.workspace)}"):
            tell_ends(self.instance, self.workspace)


@contextlib.contextmanager
def open_executor(recipe: Recipe, workspace_url: str, remember: bool = True) -> Iterator[Executor]:
    """The executor of a profile in a workspace; `remember` false leaves no trace of it, for a plan."""
    workspace = Workspace(workspace_url)
    defs = build_definitions([recipe], workspace.root)
    kept = workspace.instance() if remember else dg.DagsterInstance.ephemeral()
    with kept as instance:
        yield Executor(defs, instance, RecipeFacts(recipe), workspace)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)}" if lines else type(error).__name__


def _qualify(expression: str, names: dict[str, dg.AssetKey]) -> str:
    """Asset names as full keys (they carry the profile's name), and commas as `or`."""

    def full(match: re.Match[str]) -> str:
        return f'key:"{names[match[1]].to_user_string()}"'

    pattern = r"(?<![\w/:\"])(?:key:)?\"?(" + "|".join(map(re.escape, names)) + r")\"?(?![\w/\"])"
    return re.sub(pattern, full, expression.replace(",", " or "))


def _summary(record: Any) -> str:
    """The digest and the numbers an asset put in its metadata, without those that only its page shows."""
    parts = [f"digest {(staleness.data_version(record) or '')[:12]}"]
    for name, value in staleness.metadata_of(record).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or name in ONLY_ON_PAGES:
            continue
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        parts.append(f"{name.removeprefix('dagster/')} {shown}")
    return ", ".join(parts)
