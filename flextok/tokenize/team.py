"""An actor among the others of its job: what it tells the monitor, and what it does for others beside its own rows."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from flextok import storage
from flextok.errors import FlextokError
from flextok.runtime.fitness import ADVICE, unfit_line
from flextok.tokenize.node_faults import LEFT_OUT, MOST_OWN_FAULTS, SHARDS_FAULT, UNDECIDED
from flextok.tokenize.outcome import WAS_LEFT, ShardOutcome
from flextok.tokenize.tasks import Task, task_from_json

SHARDS_AT_ONCE = 2
MOST_CRASHES = 5
HELP = "help"
"""A row in place of tasks, for an actor that finds nothing else to do: let it help the others to the end of the job."""
ASK_EVERY_S = 0.5
ASK_SELDOM_S = 4.0
"""Of one that has asked in vain for a while: a thousand that wait must not keep the monitor busy."""

Make = Callable[[Any, bool], ShardOutcome]
"""Makes the shard of a task; whether it does so for another actor."""
Parse = Callable[[str], Task]
"""A task out of the string as which it travels."""


def row_tasks(row: str, parse: Parse = task_from_json) -> list[Any]:
    """The tasks of a row of the dataset; none for HELP."""
    return [] if row == HELP else [parse(line) for line in row.split("\n")]


class Team:
    """The place of this actor in a job. Its calls may run in several threads."""

    def __init__(self, monitor: Any, parse: Parse = task_from_json):
        import ray

        self._parse = parse
        context = ray.get_runtime_context()
        self._monitor = monitor
        self._actor = context.get_actor_id()
        self._node = context.get_node_id()
        self._address = ray.util.get_node_ip_address()
        self._handle = b""
        self._takes_part = True
        self._crashing: set[str] = set()

    def fit(self) -> None:
        """This actor can do the work where it is."""
        self._monitor.fit.remote(self._actor, self._node)

    def unfit(self, fault: Exception) -> None:
        """It cannot, and so takes no part."""
        self._takes_part = False
        self._monitor.unfit.remote(self._actor, self._node, unfit_line(fault))

    def work(self, tasks: list[Task], make: Make) -> list[ShardOutcome]:
        """Outcomes of a row's tasks, without those that were left to others; no tasks stand for HELP."""
        outcomes = []
        for number, task in enumerate(tasks):
            if not self._takes_part:
                self._monitor.leave.remote([task.name for task in tasks[number:]], self._node)
                outcomes += [found for task in tasks[number:] if (found := self._left(task, None, make)) is not None]
                break
            if (outcome := self._own(task, make)) is not None:
                outcomes.append(outcome)
        if not tasks:
            self._help(make)
        return outcomes

    def begin(self, task: Task) -> None:
        """Raises FlextokError when this job has begun the shard too often: each time but the last its actor died.

        Without this a shard which needs more memory than there is would kill actors for ever.
        """
        import ray
        from ray.cloudpickle import dumps  # pyright: ignore

        if not self._handle:  # as bytes, for the monitor need not load what an actor needs
            self._handle = dumps(ray.get_runtime_context().current_actor)
        died: Any = ray.get(self._monitor.begin.remote(task.name, self._actor, self._node, self._handle))
        if died > MOST_CRASHES:
            self._crashing.add(task.name)
            raise FlextokError(f"its actor died {died} times; look for want of memory, or try a smaller batch_size")

    def advance(self, task: Task, images: int) -> None:
        """So many images of a shard at work are tokenized."""
        self._monitor.advance.remote(task.name, images)

    def _own(self, task: Task, make: Make) -> ShardOutcome | None:
        """The outcome of a task, None where another node made what could not be made here."""
        outcome = make(task, False)
        self._make_for_another(self._end(task, outcome), make, WAS_LEFT)
        if outcome.record is not None or task.name in self._crashing:
            return outcome
        return self._left(task, outcome, make)

    def _left(self, task: Task, outcome: ShardOutcome | None, make: Make) -> ShardOutcome | None:
        """Wait until another node makes a shard that failed here, with `outcome`, or was not tried here.

        None when one made it, else the outcome of a failure.
        """
        import ray

        line = self._left_out_line(outcome) if outcome else ""
        while True:
            nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
            verdict: Any = ray.get(self._monitor.failed.remote(task.name, self._node, nodes, line))
            if verdict != UNDECIDED:
                break
            if not (self._takes_part and self._help_with_what_is_left(make)):
                time.sleep(ASK_EVERY_S)
        if verdict == LEFT_OUT:
            self._takes_part = False
        if verdict != SHARDS_FAULT:
            return None
        return outcome or self._failure(task)

    def _left_out_line(self, last: ShardOutcome) -> str:
        return (
            f"node {self._address} is left out: {MOST_OWN_FAULTS} shards in a row failed there that other nodes made, "
            f"at last {last.shard}: {storage.redact(last.error)}; {ADVICE}"
        )

    def _failure(self, task: Task) -> ShardOutcome:
        """The outcome of a shard that this node left to others, and that they could not make."""
        import ray

        told: Any = ray.get(self._monitor.failure.remote(task.name))
        if told:
            return ShardOutcome.from_json(told)
        now = time.time()
        return ShardOutcome(task.name, None, [], "no node is there that could make it", "", now, now, 0)

    def _help(self, make: Make) -> None:
        """Make stragglers and what failed on other nodes, until the job is done."""
        import ray

        pause_s = ASK_EVERY_S
        while self._takes_part:
            found: Any = ray.get(self._monitor.to_help.remote(self._actor, self._node))
            if found is None:
                return
            task, why = found
            if task:
                self._make_for_another(task, make, why)
                pause_s = ASK_EVERY_S
            else:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, ASK_SELDOM_S)
        while ray.get(self._monitor.is_open.remote()):  # a row that ended would make room for another
            time.sleep(pause_s)

    def _help_with_what_is_left(self, make: Make) -> bool:
        """Make one shard that another node cannot, if there is any; whether there was."""
        import ray

        found: Any = ray.get(self._monitor.left_by_others.remote(self._node))
        self._make_for_another(found, make, WAS_LEFT)
        return bool(found)

    def _make_for_another(self, text: str, make: Make, why: str) -> None:
        """The task `text`, if there is one, and what others have left by then.

        The outcome goes to the driver through the monitor, as the row with the task is another's.
        """
        while text:
            task = self._parse(text)
            outcome = make(task, True)
            told = dataclasses.replace(outcome, made_for=why).to_json()
            self._monitor.tell.remote(task.name, told, outcome.record is not None)
            text, why = self._end(task, outcome), WAS_LEFT

    def _end(self, task: Task, outcome: ShardOutcome) -> str:
        """Tell the outcome; gives a task that another node could not make or has left, "" for none."""
        import ray

        made = outcome.record is not None
        images = task.source.samples - len(outcome.rejects) if made else 0
        left: Any = ray.get(self._monitor.end.remote(task.name, self._node, made, images))
        return left
