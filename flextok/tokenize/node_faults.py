"""Whose fault a failed shard is: the shard's, when no node can make it, or the node's, when another node can.

Without this a node whose disk is full or whose mount is lost would fail one shard after another within moments, and so
take most of a job, since whoever has nothing to do gets the next.
"""

import math
from collections.abc import Callable, Iterable

MOST_OWN_FAULTS = 3
"""Shards that fail on a node and on no other, with none made there between, after which it is left out."""
COMING_WITHIN_S = 60.0
"""After the first actor is ready others may still be starting, and are waited for before a shard is given up."""
UNDECIDED, SHARDS_FAULT, NODES_FAULT, LEFT_OUT = "", "shard", "node", "left out"


class NodeFaults:
    """Counts which node failed which shard. A shard that failed waits for a node that has not tried it yet.

    `patience` gives the seconds that it waits at most. Nodes are named by their ids.
    """

    def __init__(self, patience: Callable[[], float], clock: Callable[[], float]):
        self._patience = patience
        self._clock = clock
        self._fit: set[str] = set()
        self._unfit: set[str] = set()
        self._first_fit = math.inf
        self._left_out: set[str] = set()
        self._failed: dict[str, set[str]] = {}
        self._open: dict[str, None] = {}
        """Failed shards that nobody has made or is making, the first first."""
        self._since: dict[str, float] = {}
        self._taken: set[str] = set()
        self._made: set[str] = set()
        self._in_a_row: dict[str, int] = {}
        self._lines: dict[str, str] = {}

    def fit(self, node: str) -> None:
        """An actor on `node` is ready to work."""
        self._fit.add(node)
        self._first_fit = min(self._first_fit, self._clock())

    def unfit(self, node: str) -> None:
        """An actor on `node` cannot work there."""
        self._fit.discard(node)
        self._unfit.add(node)

    def leave(self, shards: Iterable[str], node: str) -> None:
        """`node` takes no part, or no longer, and leaves these to others."""
        for shard in shards:
            self._has_tried(shard, node)

    def failed(self, shard: str, node: str, nodes: Iterable[str], line: str) -> str:
        """`node` could not make `shard`, and asks until it is decided whose fault that is.

        `nodes` are there now and may hold an actor.
        One of the four words above. LEFT_OUT stands for NODES_FAULT of a node that shall take no more shards, for the
        reason that `line` tells; a node that has left the shard without trying it gives none.
        """
        tried = self._has_tried(shard, node)
        if shard in self._made:
            return self._blame(node, line) if line else NODES_FAULT
        able = (self._fit & set(nodes)) - self._left_out
        if able and not tried & able:
            return UNDECIDED
        since = self._since.setdefault(shard, self._clock())
        others_may = able - tried or (not able and node not in self._fit - self._left_out)
        if others_may and self._clock() - since < self._patience():
            return UNDECIDED
        others_may_come = set(nodes) - self._fit - self._unfit - tried
        if others_may_come and self._clock() - self._first_fit < COMING_WITHIN_S:
            return UNDECIDED
        return SHARDS_FAULT

    def wanted(self, node: str) -> str:
        """A shard that failed or was left elsewhere and that `node` shall make; "" for none. One node at a time has it."""
        if node in self._left_out:
            return ""
        for shard in self._open:
            if node not in self._failed[shard]:
                del self._open[shard]
                self._taken.add(shard)
                return shard
        return ""

    def tried(self, shard: str, node: str, made: bool) -> None:
        """`node` made the shard, or could not either where another had failed."""
        self._taken.discard(shard)
        if made:
            self._made.add(shard)
            self._open.pop(shard, None)
            self._in_a_row[node] = 0
        elif shard in self._failed:
            self._has_tried(shard, node)

    def lines(self) -> list[str]:
        """Why nodes were left out, one line for each."""
        return list(self._lines.values())

    def _has_tried(self, shard: str, node: str) -> set[str]:
        """Note it; gives all nodes that have."""
        if shard not in self._made and shard not in self._taken:
            self._open[shard] = None
        tried = self._failed.setdefault(shard, set())
        tried.add(node)
        return tried

    def _blame(self, node: str, line: str) -> str:
        self._in_a_row[node] = self._in_a_row.get(node, 0) + 1
        if self._in_a_row[node] >= MOST_OWN_FAULTS and self._fit - self._left_out - {node}:
            self._left_out.add(node)
            self._lines.setdefault(node, line)
        return LEFT_OUT if node in self._left_out else NODES_FAULT
