"""Speculative execution: which shard of a job hangs, so that another actor makes it too."""

import dataclasses
import statistics
import time
from collections.abc import Callable

SLOW_BY = 3.0


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
    write the same rows.
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
        self._images = 0
        self._all_given_out: float | None = None
        self._open = True
        self._set_aside: set[str] = set()
        self._fit: set[str] = set()
        self._unfit: dict[str, str] = {}

    def fit(self, actor_id: str) -> None:
        """An actor can do the work where it is."""
        self._fit.add(actor_id)

    def unfit(self, actor_id: str, line: str) -> None:
        """An actor cannot do the work where it is, for the reason that `line` tells."""
        self._unfit[actor_id] = line

    def fitness(self) -> tuple[int, list[str]]:
        """How many actors can do the work, and the lines of those that cannot."""
        return len(self._fit), list(self._unfit.values())

    def set_aside(self, shard: str) -> bool:
        """An actor that cannot do the work has a shard ("" for none); whether it should go on holding it."""
        if shard and shard in self._left:
            self._set_aside.add(shard)
        return self._open and (not shard or shard in self._left)

    def begin(self, shard: str, actor_id: str, handle: bytes) -> int:
        """An actor (its id, and its pickled handle) takes up a shard; gives how often this happened before, that is how many actors it has killed."""
        before = self._begun.get(shard, 0)
        self._begun[shard] = before + 1
        self._actors[actor_id] = handle
        self._at_work[shard] = _AtWork(actor_id, self._clock())
        return before

    def advance(self, shard: str, images: int) -> None:
        """So many images of a shard at work are tokenized."""
        if shard in self._at_work:
            self._at_work[shard].images = images

    def end(self, shard: str, images: int) -> None:
        """A shard is finished with so many images, or has failed with none."""
        work = self._at_work.pop(shard, None)
        if images and shard not in self._ended:
            self._ended.add(shard)
            self._images += images
            if work is not None:
                self._seconds.append(self._clock() - work.since)

    def settle(self, shard: str) -> None:
        """The driver has the outcome of a shard. Until then its actor may hang, even with the shard finished."""
        self._left.pop(shard, None)

    def straggler(self, actor_id: str) -> str | None:
        """The task of a shard that `actor_id` should make as well; "" while there is none yet, None when all is done.

        Asked by actors that found nothing else to do: what was not begun by then lies with an actor that hangs. So does
        what has ended without reaching the driver.
        """
        if not self._open:
            return None
        if self._all_given_out is None:
            self._all_given_out = self._clock()
        if aside := sorted(self._set_aside & self._left.keys() - self._helped):
            self._helped.add(aside[0])
            return self._left[aside[0]]
        usual = statistics.median(self._seconds) if self._seconds else float("inf")
        for shard in self._left.keys() - self._helped:
            work = self._at_work.get(shard)
            waited = self._clock() - (work.since if work else self._all_given_out)
            if waited > max(self._straggler_s, SLOW_BY * usual) and (work is None or work.actor_id != actor_id):
                self._helped.add(shard)
                return self._left[shard]
        return ""

    def images(self) -> int:
        """Images tokenized by now, those of unfinished shards included."""
        return self._images + sum(work.images for work in self._at_work.values())

    def shards_begun(self) -> int:
        """How many shards any actor has taken up by now."""
        return len(self._begun)

    def close(self) -> list[bytes]:
        """Every shard has its outcome: helpers may go. Gives the handles of all actors that began any."""
        self._open = False
        return list(self._actors.values())
