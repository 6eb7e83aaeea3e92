"""What every sharded job does with its destination: finished shards stay, the others are made, strays go, and only then
comes the manifest, by which the folder counts."""

import concurrent.futures
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from flextok import storage
from flextok.data.rejects import Reject
from flextok.data.tokens import ShardRecord
from flextok.data.tokens.writer import MANIFEST
from flextok.errors import FlextokError, IntegrityError
from flextok.runtime.progress import track
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.scheduler import Workers, run_tasks
from flextok.tokenize.tasks import CHECK_THREADS, Finished, Task, TaskT, finished_records
from flextok.tokenize.worker import ShardWorker

LISTED_FAULTS = 10


@dataclass(frozen=True)
class MadeShards(Generic[TaskT]):
    """All shards of a job: what was there, and what was made."""

    tasks: Sequence[TaskT]
    finished: dict[str, Finished]
    outcomes: list[ShardOutcome] = field(default_factory=list)

    @property
    def records(self) -> list[ShardRecord]:
        """Of all shards."""
        made = [outcome.record for outcome in self.outcomes if outcome.record is not None]
        return [*(record for record, _ in self.finished.values()), *made]

    @property
    def rejects(self) -> list[Reject]:
        """Of all shards, sorted."""
        found = [rejects for _, rejects in self.finished.values()] + [outcome.rejects for outcome in self.outcomes]
        return sorted(reject for rejects in found for reject in rejects)


def make_shards(
    dest: str,
    tasks: Sequence[TaskT],
    finished_record: Callable[[TaskT], Finished | None],
    make: Callable[[list[TaskT], dict[str, Finished]], list[ShardOutcome]],
    done: str,
) -> MadeShards[TaskT]:
    """Have `make` make what `finished_record` does not find, given the tasks that are left and what is finished.

    Raises FlextokError where some could not be `done` ("tokenized"); the others stay then.
    """
    clear_leftovers(dest)
    finished = finished_records(tasks, finished_record)
    todo = [task for task in tasks if task.name not in finished]
    if todo:
        # A manifest must never be there beside shards that are about to change.
        storage.remove(storage.join(dest, MANIFEST))
    outcomes = make(todo, finished)
    clear_leftovers(dest)
    failed = [outcome for outcome in outcomes if outcome.record is None]
    if failed:
        listed = "; ".join(f"{outcome.shard}: {outcome.error}" for outcome in failed[:LISTED_FAULTS])
        raise FlextokError(
            f"expected all {len(tasks)} shards of {tasks[0].corpus} to be {done}, found {len(failed)} that could not be: "
            f"{listed}; mend them and run the same command again (finished shards are kept)"
        )
    return MadeShards(tasks, finished, outcomes)


def run_shown(
    title: str | None, total: int, tasks: Sequence[Task], actor: type, arguments: dict[str, Any], workers: Workers
) -> list[ShardOutcome]:
    """`run_tasks`, with a progress of `total` images under a title where there is one; what is no task is done."""
    done = total - sum(task.source.samples for task in tasks)
    with track(title, total, "images") if title else contextlib.nullcontext() as shown:

        def show(images: int, failed: int) -> None:
            if shown:
                shown.update(done + images, f"{failed} shards failed" if failed else "")

        show(0, 0)
        return run_tasks(tasks, actor, arguments, workers, show)


def run_here(
    title: str, total: int, tasks: Sequence[TaskT], actor: type[ShardWorker[TaskT, Any]], arguments: dict[str, Any]
) -> list[ShardOutcome]:
    """What `run_shown` gives, made one after another in this process: for a job that is too small for actors to pay.

    Raises what the making of a shard raises; those before it are finished.
    """
    outcomes: list[ShardOutcome] = []
    done = total - sum(task.source.samples for task in tasks)
    worker = actor(**arguments)
    with track(title, total, "images") as shown:
        for task in tasks:

            def show(images: int, before: int = done) -> None:
                shown.update(before + images)

            outcomes.append(worker.make_here(task, show))
            done += task.source.samples
            shown.update(done)
    return outcomes


def clear_leftovers(dest: str) -> None:
    """Remove what killed writers left; only the job that holds the lock does this."""
    if storage.is_local(dest):
        for path in Path(storage.local_path(dest)).glob(f"{storage.TEMPORARY_PREFIX}*"):
            path.unlink(missing_ok=True)


def check_no_mix(tasks: Sequence[TaskT], is_of: Callable[[TaskT], bool]) -> None:
    """The last look before the commit: an actor of an earlier, killed job may have written after we had checked.

    `is_of` says whether the file of a task is there and of that task. Raises IntegrityError.
    """
    with concurrent.futures.ThreadPoolExecutor(CHECK_THREADS) as pool:
        found = list(pool.map(is_of, tasks))
    for task, good in zip(tasks, found, strict=True):
        if not good:
            raise IntegrityError(f"found {task.dest} written over by another job; run the same command again")


def remove_strays(dest: str, tasks: Sequence[TaskT], suffix: str) -> None:
    """Remove files with this ending of an image shard that is no more."""
    wanted = {f"{task.name}{suffix}" for task in tasks}
    for name in storage.list_names(dest):
        if name.endswith(suffix) and name not in wanted:
            storage.remove(storage.join(dest, name))
