"""Whether the process of a run still lives: it holds a lock, which the kernel frees when the process ends, however it does.

Dagster marks a run as failed when the server that started its process sees that end. Where both end at once, as with a
container that is begun anew or a machine that goes down, nobody would, and everything that waits for the run would wait for
ever. The locks lie in Dagster's home; where processes do not share one, as on Kubernetes, Dagster asks the launcher instead.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from filelock import FileLock, Timeout

from pipelines.workspace import Workspace

FOLDER = "alive"
LOOK_EVERY_S = 30
PROCESS_IS_GONE = "its process ended before it did"
YOUNG_S = 60.0
"""A file as young as that may not be locked yet."""


@contextlib.contextmanager
def alive(workspace: Workspace, run_id: str) -> Iterator[None]:
    """The run lives at least as long as the block."""
    if not workspace.has_records:
        yield
        return
    path = _folder(workspace) / run_id
    path.parent.mkdir(exist_ok=True)
    with FileLock(path, fallback_to_soft=False):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def mark_lost_runs(instance: dg.DagsterInstance, workspace: Workspace) -> list[str]:
    """Mark the unfinished runs whose process is gone as failed; gives their ids. Retries are Dagster's."""
    lost = []
    for path in _folder(workspace).glob("*"):
        with contextlib.suppress(Timeout, FileNotFoundError):
            if time.time() - path.stat().st_mtime < YOUNG_S:
                continue
            with FileLock(path, timeout=0, fallback_to_soft=False):
                run = instance.get_run_by_id(path.name)
                if run is not None and not run.is_finished:
                    instance.report_run_failed(run, PROCESS_IS_GONE)
                    lost.append(run.run_id)
                path.unlink(missing_ok=True)
    return lost


def lost_runs_sensor(workspace_url: str) -> dg.SensorDefinition:
    """Looks for such runs under Dagster's daemon."""

    @dg.sensor(
        name="lost_runs",
        description="Marks runs as failed whose process ended together with the server that started it.",
        minimum_interval_seconds=LOOK_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def lost_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        lost = mark_lost_runs(context.instance, Workspace(workspace_url))
        return dg.SkipReason(f"marked {len(lost)} runs" + (f": {', '.join(lost)}" if lost else ""))

    return lost_runs


def _folder(workspace: Workspace) -> Path:
    return workspace.dagster_home / FOLDER
