"""What the nodes of a Ray cluster have, and how many workers of a size fit on them.

A worker lies on one node. So sizes come from the nodes: the sum of a cluster says nothing, since two nodes of one CPU hold
no worker of two.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flextok.errors import UsageError

Beside = Mapping[str, float | str]
"""What a worker asks for beside CPUs and GPUs, see ComputeConfig.resources."""
NOTHING: Beside = {}
UNLIMITED = 1_000_000
"""Nodes that an autoscaler without a limit may bring."""


@dataclasses.dataclass(frozen=True)
class Node:
    """CPUs and GPUs of one node, or of each of `count` equal ones."""

    cpus: float
    gpus: float = 0
    count: int = 1
    most: float = math.inf
    """Workers that it holds by what they ask for beside CPUs and GPUs."""

    def holds(self, cpus: float, gpus: float = 0) -> int:
        """Workers of a size that fit on one of these nodes."""
        wanted = [(self.cpus, cpus), (self.gpus, gpus)]
        return int(min(self.most, *(_amounts(has, needs) for has, needs in wanted if needs > 0)))


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

    def require_place(self, what: str, cpus: float, gpus: float, hint: str, beside: Beside = NOTHING) -> None:
        """Raises UsageError where no node, there or to come, holds a worker of that size: Ray would wait for ever."""
        if not self.places(cpus, gpus):
            raise UsageError(
                f"expected a node with {size_text(cpus, gpus, beside)} for {what}, found {self.described()}; {hint}"
            )

    def described(self) -> str:
        """The nodes in a few words."""
        if not self.all:
            return "no node"
        largest = max(self.all, key=lambda node: (node.gpus, node.cpus))
        nodes = "1 node" if len(self.there) == 1 else f"{len(self.there)} nodes"
        return f"{nodes}, of which the largest has {size_text(largest.cpus, largest.gpus)}"


def size_text(cpus: float, gpus: float, beside: Beside = NOTHING) -> str:
    """So many CPUs and GPUs, and what is asked for beside them, in words."""
    texts = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"]
    if gpus:
        texts.append(f"{gpus:g} GPU{'' if gpus == 1 else 's'}")
    texts += [f"{name}={wanted if isinstance(wanted, str) else f'{wanted:g}'}" for name, wanted in beside.items()]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def beside_options(beside: Beside) -> dict[str, Any]:
    """The options of Ray for what a worker asks for beside CPUs and GPUs: numbers of custom resources, labels as strings."""
    amounts = {name: wanted for name, wanted in beside.items() if not isinstance(wanted, str)}
    labels = {name: wanted for name, wanted in beside.items() if isinstance(wanted, str)}
    return ({"resources": amounts} if amounts else {}) | ({"label_selector": labels} if labels else {})


def cluster_nodes(beside: Beside = NOTHING) -> ClusterNodes:
    """The nodes of the cluster that this process is connected to, for workers that ask for `beside`."""
    import ray

    there = []
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            there.append(Node(has.get("CPU", 0), has.get("GPU", 0), 1, _most(has, node["Labels"], beside)))
    return ClusterNodes(there, _coming(beside))


def _most(amounts: Mapping[str, float], labels: Mapping[str, str] | None, beside: Beside) -> float:
    """Workers that a node with these holds; one whose labels nobody knows may have any."""
    most = math.inf
    for name, wanted in beside.items():
        if not isinstance(wanted, str):
            most = min(most, _amounts(amounts.get(name, 0), wanted))
        elif labels is not None and labels.get(name) != wanted:
            most = 0
    return most


def _amounts(has: float, needs: float) -> int:
    return math.floor(has / needs + 1e-9)


def _coming(beside: Beside) -> list[Node]:
    """What the autoscaler may bring beside its fewest, by the one record that Ray keeps of it.

    Ray has no public way to ask; its own libraries read it here too.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    found = []
    for group in config.node_group_configs if config else ():
        count = UNLIMITED if group.max_count < 0 else group.max_count - group.min_count
        if count > 0:
            has = group.resources
            found.append(Node(has.get("CPU", 0), has.get("GPU", 0), count, _most(has, None, beside)))
    return found
