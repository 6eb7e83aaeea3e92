"""An actor of a sharded job: makes one shard after another, tells a fault of one rather than raising it."""

import errno
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

from flextok import storage
from flextok.data.rejects import Reject
from flextok.data.tokens import ShardRecord
from flextok.errors import FlextokError, IntegrityError
from flextok.runtime.members import unpack_members
from flextok.runtime.memory import keep_freed_memory, peak_memory
from flextok.runtime.storage_errors import FULL
from flextok.tokenize.fitness import Proof
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.tasks import Finished, Task, TaskT
from flextok.tokenize.team import Team, row_tasks

ATTEMPTS = 4
LASTING_FAULTS = (*FULL, errno.EROFS)
TELL_EVERY_S = 1.0
ModelT = TypeVar("ModelT")


class ShardWorker(Generic[TaskT, ModelT]):
    """Callable for Ray Data: a row `{task}` in, a row `{outcome}` out, each a line of JSON for each of its shards.

    With a `monitor` the actor is one of a `Team`. A subclass gives what `load`s its model, and how its tasks are read
    (`parse`), found finished and made.
    """

    parse: Callable[[str], Task]

    def __init__(
        self, load: Callable[[], ModelT], monitor: Any = None, members: bytes = b"", proof: Proof | None = None
    ):
        keep_freed_memory(large=True)
        unpack_members(members)
        self._team = Team(monitor, self.parse) if monitor is not None else None
        self._show: Callable[[int], None] | None = None
        self._model: ModelT | None = None
        try:
            if proof is not None:
                proof.give()
            self._model = load()
        except FlextokError as fault:
            if self._team is None:
                raise
            self._team.unfit(fault)
        else:
            if self._team is not None:
                self._team.fit()

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        tasks = row_tasks(row["task"], self.parse)
        if self._team is None:
            outcomes = [self._outcome(task, helping=False) for task in tasks]
        else:
            outcomes = self._team.work(tasks, self._outcome)
        return {"outcome": "\n".join(outcome.to_json() for outcome in outcomes)}

    @property
    def model(self) -> ModelT:
        """What was loaded for the work."""
        assert self._model is not None, "an actor that is not fit was given work"
        return self._model

    def make_here(self, task: TaskT, show: Callable[[int], None]) -> ShardOutcome:
        """Make one shard where nobody else works for the job; `show` gets the images done by now.

        Raises what the making raises.
        """
        self._show, started = show, time.time()
        record, rejects, warning = self._attempts(task)
        return ShardOutcome(task.name, record, rejects, "", warning, started, time.time(), peak_memory())

    def _finished(self, task: TaskT) -> Finished | None:
        """What is there of a task, where that is whole."""
        raise NotImplementedError

    def _attempt(self, task: TaskT) -> tuple[ShardRecord, list[Reject], str]:
        """Make a shard from its beginning; gives its record, rejects, and a warning or ""."""
        raise NotImplementedError

    def _outcome(self, task: TaskT, helping: bool) -> ShardOutcome:
        started = time.time()
        record, rejects, error, warning = None, list[Reject](), "", ""
        try:
            # An actor may die between committing a shard and saying so, perhaps through another shard of its row.
            if (finished := self._finished(task)) is not None:
                record, rejects = finished
            else:
                if self._team is not None and not helping:
                    self._team.begin(task)
                record, rejects, warning = self._attempts(task)
        except Exception as fault:  # noqa: BLE001 - one shard's fault must not end the others; the job fails at its end
            error = _one_line(fault)
        return ShardOutcome(task.name, record, rejects, error, warning, started, time.time(), peak_memory())

    def _attempts(self, task: TaskT) -> tuple[ShardRecord, list[Reject], str]:
        far = not (storage.is_local(task.source.url) and storage.is_local(task.dest))
        for _ in range(ATTEMPTS - 1):
            try:
                return self._attempt(task)
            except BrokenProcessPool:
                continue  # a decoder was killed, perhaps for want of memory by something else
            except Exception as fault:
                if not far or _lasting(fault):
                    raise
        return self._attempt(task)

    def _tell(self, task: TaskT, images: int, told: float) -> float:
        """Tell once a second how many images of a shard are done; `told` is when that was last, and what comes back."""
        if self._show is not None:
            self._show(images)
        if self._team is None or time.monotonic() - told <= TELL_EVERY_S:
            return told
        self._team.advance(task, images)
        return time.monotonic()


def _lasting(fault: Exception) -> bool:
    """Whether trying again cannot help."""
    if isinstance(fault, FileNotFoundError | PermissionError):
        return True
    if isinstance(fault, OSError):
        return fault.errno in LASTING_FAULTS
    return isinstance(fault, FlextokError) and not isinstance(fault, IntegrityError)


def _one_line(fault: Exception) -> str:
    text = " ".join(str(fault).split())
    if isinstance(fault, FlextokError):
        return text
    if isinstance(fault, BrokenProcessPool):
        return f"a decoding process was killed {ATTEMPTS} times; look for want of memory, or a picture that crashes it"
    return f"{type(fault).__name__}: {text}"[:500]
