"""Speculative execution: which shard of a job hangs, so that another actor makes it too."""

import bisect
import dataclasses
import time
from collections.abc import Callable

from flextok.tokenize.node_faults import NODES_FAULT, NodeFaults
from flextok.tokenize.outcome import WAS_LEFT, WAS_SLOW

SLOW_BY = 3.0
UNKNOWN_BY = 10.0
"""As long as nobody knows how long a shard takes."""


@dataclasses.dataclass
class _AtWork:
    actor_id: str
    since: float
    images: int = 0


class StragglerMonitor:
    """One Ray actor beside the driver, to which the tokenizing actors tell what they do. It only counts, and never waits.

    It picks the shards for backup tasks (as MapReduce calls them; elsewhere: speculative execution). Ray Data has none:
    it makes a task again when its actor dies, but an actor on a node that hangs or crawls would keep the job for ever.

    A shard is a straggler when it has been at work for `straggler_s` seconds and three times as long as shards take
    (the median of those that are finished). Another actor then makes it too; whichever is first counts, as both
    write the same rows. A shard that fails is judged by `NodeFaults`.
    """

    def __init__(self, tasks: dict[str, str], straggler_s: float, clock: Callable[[], float] = time.monotonic):
        self._left = tasks
        self._clock = clock
        self._straggler_s = straggler_s
        self._actors: dict[str, bytes] = {}
        self._begun: dict[str, int] = {}
        self._ended: set[str] = set()
        self._at_work: dict[str, _AtWork] = {}
        self._helped: set[str] = set()
        self._seconds: list[float] = []
        """What finished shards took, sorted."""
        self._images = 0
        self._all_given_out: float | None = None
        self._open = True
        self._fit: set[str] = set()
        self._unfit: dict[str, str] = {}
        self._faults = NodeFaults(self._patience, clock)
        self._told: dict[str, str] = {}
        self._failures: dict[str, str] = {}

    def fit(self, actor_id: str, node: str) -> None:
        """An actor can do the work where it is, on `node`."""
        self._fit.add(actor_id)
        self._faults.fit(node)

    def unfit(self, actor_id: str, node: str, line: str) -> None:
        """An actor cannot do the work where it is, for the reason that `line` tells."""
        self._unfit[actor_id] = line
        self._faults.unfit(node)

    def fitness(self) -> tuple[int, list[str]]:
        """How many actors could do the work when they started, and the lines of those that cannot or no longer."""
        return len(self._fit), [*self._unfit.values(), *self._faults.lines()]

    def begin(self, shard: str, actor_id: str, node: str, handle: bytes) -> int:
        """An actor (its id and its pickled handle) on `node` takes up a shard; gives how often this happened before, that
        is how many actors it has killed."""
        self.fit(actor_id, node)  # a monitor that started anew does not know
        before = self._begun.get(shard, 0)
        self._begun[shard] = before + 1
        self._actors[actor_id] = handle
        self._at_work[shard] = _AtWork(actor_id, self._clock())
        return before

    def advance(self, shard: str, images: int) -> None:
        """So many images of a shard at work are tokenized."""
        if shard in self._at_work:
            self._at_work[shard].images = images

    def end(self, shard: str, node: str, made: bool, images: int) -> str:
        """A shard is finished on `node` with so many images, or has failed there with none.

        Gives what `left_by_others` does: one call for both, as this actor serves all others and so is what may limit them.
        """
        work = self._at_work.pop(shard, None)
        self._faults.tried(shard, node, made)
        if made and shard not in self._ended:
            self._ended.add(shard)
            self._images += images
            if work is not None:
                bisect.insort(self._seconds, self._clock() - work.since)
        return self.left_by_others(node)

    def leave(self, shards: list[str], node: str) -> None:
        """`node` takes no part, or no longer, and leaves these to others."""
        self._faults.leave(shards, node)

    def failed(self, shard: str, node: str, nodes: list[str], line: str) -> str:
        """See NodeFaults: whose fault it is that `node` could not make a shard."""
        if not self._open or shard not in self._left:
            return NODES_FAULT  # the driver has it from another, or ends early
        return self._faults.failed(shard, node, nodes, line)

    def left_by_others(self, node: str) -> str:
        """The task of a shard that another node could not make or has left, and that `node` shall make; "" for none."""
        return self._left.get(self._faults.wanted(node), "")

    def tell(self, shard: str, outcome: str, made: bool) -> None:
        """The outcome of a shard that an actor made, or could not make either, for another one."""
        if shard in self._left:
            (self._told if made else self._failures)[shard] = outcome

    def failure(self, shard: str) -> str:
        """The outcome of the last such attempt that failed; "" for none."""
        return self._failures.get(shard, "")

    def is_open(self) -> bool:
        """Whether some shard has no outcome yet."""
        return self._open

    def told(self) -> list[str]:
        """The outcomes of such shards that the driver has not settled yet."""
        return list(self._told.values())

    def settle(self, shards: list[str]) -> None:
        """The driver has the outcomes of these. Until then their actors may hang, even with the shards finished."""
        for shard in shards:
            self._left.pop(shard, None)
            self._told.pop(shard, None)

    def to_help(self, actor_id: str, node: str) -> tuple[str, str] | None:
        """A task that `actor_id` on `node` should make for another, and why; an empty one for none, None when all is done."""
        if left := self.left_by_others(node):
            return left, WAS_LEFT
        slow = self.straggler(actor_id)
        return None if slow is None else (slow, WAS_SLOW)

    def straggler(self, actor_id: str) -> str | None:
        """The task of a shard that `actor_id` should make as well; "" while there is none yet, None when all is done.

        Asked by actors that found nothing else to do: what was not begun by then lies with an actor that hangs. So does
        what has ended without reaching the driver.
        """
        if not self._open:
            return None
        if self._all_given_out is None:
            self._all_given_out = self._clock()
        patience = self._patience()
        for shard in self._left.keys() - self._helped:
            work = self._at_work.get(shard)
            waited = self._clock() - (work.since if work else self._all_given_out)
            if waited > patience and (work is None or work.actor_id != actor_id):
                self._helped.add(shard)
                return self._left[shard]
        return ""

    def images(self) -> int:
        """Images tokenized by now, those of unfinished shards included."""
        return self._images + sum(work.images for work in self._at_work.values())

    def shards_begun(self) -> int:
        """How many shards any actor has taken up by now."""
        return len(self._begun)

    def _patience(self) -> float:
        """Seconds after which a shard is a straggler."""
        if not self._seconds:
            return UNKNOWN_BY * self._straggler_s
        return max(self._straggler_s, SLOW_BY * self._seconds[len(self._seconds) // 2])

    def close(self) -> list[bytes]:
        """Every shard has its outcome: helpers may go. Gives the handles of all actors that began any."""
        self._open = False
        return list(self._actors.values())
