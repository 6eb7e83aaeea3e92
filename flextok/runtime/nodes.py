"""What the nodes of a Ray cluster have, and how many workers of a size fit on them.

A worker lies on one node. So sizes come from the nodes: the sum of a cluster says nothing, since two nodes of one CPU hold
no worker of two.
"""

import dataclasses
import math
from collections.abc import Sequence

from flextok.errors import UsageError

UNLIMITED = 1_000_000
"""Nodes that an autoscaler without a limit may bring."""


@dataclasses.dataclass(frozen=True)
class Node:
    """CPUs and GPUs of one node, or of each of `count` equal ones."""

    cpus: float
    gpus: float = 0
    count: int = 1

    def holds(self, cpus: float, gpus: float = 0) -> int:
        """Workers of a size that fit on one of these nodes."""
        wanted = [(self.cpus, cpus), (self.gpus, gpus)]
        return min(math.floor(has / needs + 1e-9) for has, needs in wanted if needs > 0)


@dataclasses.dataclass(frozen=True)
class ClusterNodes:
    """Nodes that are there, and those that an autoscaler may bring beside them."""

    there: Sequence[Node]
    coming: Sequence[Node] = ()

    @property
    def all(self) -> list[Node]:
        """Both."""
        return [*self.there, *self.coming]

    def places(self, cpus: float, gpus: float = 0) -> int:
        """Workers of a size that fit, on all nodes together."""
        return sum(node.count * node.holds(cpus, gpus) for node in self.all)

    def largest_share(self, workers: int) -> int:
        """CPUs for each of `workers`, as many as all of them can have at once; 1 where not even that fits."""
        most = int(max((node.cpus for node in self.all), default=1))
        return next((cpus for cpus in range(most, 1, -1) if self.places(cpus) >= workers), 1)

    def require_place(self, what: str, cpus: float, gpus: float, hint: str) -> None:
        """Raises UsageError where no node, there or to come, holds a worker of that size: Ray would wait for ever."""
        if not self.places(cpus, gpus):
            raise UsageError(
                f"expected a node with {size_text(cpus, gpus)} for {what}, found {self.described()}; {hint}"
            )

    def described(self) -> str:
        """The nodes in a few words."""
        if not self.all:
            return "no node"
        largest = max(self.all, key=lambda node: (node.gpus, node.cpus))
        nodes = "1 node" if len(self.there) == 1 else f"{len(self.there)} nodes"
        return f"{nodes}, of which the largest has {size_text(largest.cpus, largest.gpus)}"


def size_text(cpus: float, gpus: float) -> str:
    """So many CPUs and GPUs, in words."""
    cpu_text = f"{cpus:g} CPU{'' if cpus == 1 else 's'}"
    return f"{cpu_text} and {gpus:g} GPU{'' if gpus == 1 else 's'}" if gpus else cpu_text


def cluster_nodes() -> ClusterNodes:
    """The nodes of the cluster that this process is connected to."""
    import ray

    there = [
        Node(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]
    ]
    return ClusterNodes(there, _coming())


def _coming() -> list[Node]:
    """What the autoscaler may bring beside its fewest, by the one record that Ray keeps of it.

    Ray has no public way to ask; its own libraries read it here too.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    found = []
    for group in config.node_group_configs if config else ():
        count = UNLIMITED if group.max_count < 0 else group.max_count - group.min_count
        if count > 0:
            found.append(Node(group.resources.get("CPU", 0), group.resources.get("GPU", 0), count))
    return found
