"""What the nodes of a Ray cluster have, and how many workers of a size fit on them.

A worker lies on one node. So sizes come from the nodes: the sum of a cluster says nothing, since two nodes of one CPU hold
no worker of two.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flextok.errors import UsageError

Beside = Mapping[str, float | str]
"""What a worker asks for beside CPUs and GPUs, see ComputeConfig.resources."""
NOTHING: Beside = {}
UNLIMITED = 1_000_000
"""Nodes that an autoscaler without a limit may bring."""
ASKED_OF_AUTOSCALER = 64
"""Workers that are asked for where nobody said how many, and nobody knows what an autoscaler may bring."""
MONITOR_TELLS_WITHIN_S = 15.0
FIXED_TYPE = "node_"
"""What a node's type begins with, its id behind it, where Ray's monitor only looks on."""


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
    grows: bool = False
    """Whether an autoscaler may bring others, of sizes that nobody knows."""

    @property
    def all(self) -> list[Node]:
        """Both."""
        return [*self.there, *self.coming]

    def places(self, cpus: float, gpus: float = 0) -> int:
        """Workers of a size that fit, on all nodes together."""
        known = sum(node.count * node.holds(cpus, gpus) for node in self.all)
        return max(known, UNLIMITED) if self.grows else known

    def workers_to_ask_for(self, cpus: float, gpus: float = 0) -> int:
        """Workers of a size where nobody said how many: what there is room for, and some of an autoscaler's."""
        known = dataclasses.replace(self, grows=False).places(cpus, gpus)
        return max(known, ASKED_OF_AUTOSCALER) if self.grows else known

    def largest_share(self, workers: int) -> int:
        """CPUs for each of `workers`, as many as all of them can have at once; 1 where not even that fits."""
        most = int(max((node.cpus for node in self.all), default=1))
        known = dataclasses.replace(self, grows=False)
        return next((cpus for cpus in range(most, 1, -1) if known.places(cpus) >= workers), 1)

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
        more = " and an autoscaler" if self.grows else ""
        return f"{nodes}, of which the largest has {size_text(largest.cpus, largest.gpus)}{more}"


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
    coming = _coming(beside)
    if not any(node.cpus for node in there):
        _await_monitor()
    return ClusterNodes(there, coming, grows=not coming and _autoscaler_runs())


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
    """What the autoscaler may bring beside its fewest, where it says so.

    Ray has no public way to ask; its own libraries read it here too. Its open autoscalers (of 2.60) say nothing.
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


@functools.cache
def _await_monitor() -> None:
    """Some seconds pass until the monitor of a head that was just started tells anything; some heads have none."""
    until = time.monotonic() + MONITOR_TELLS_WITHIN_S
    while not _told_by_monitor() and time.monotonic() < until:
        time.sleep(0.5)


def _told_by_monitor() -> bytes | None:
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    return _internal_kv_get(DEBUG_AUTOSCALING_STATUS)


def _autoscaler_runs() -> bool:
    """Whether one may bring nodes; Ray has no public way to ask this either.

    The monitor beside a head tells the types of the nodes: those of an autoscaler's settings, or else made of their ids.
    """
    import ray

    told = _told_by_monitor()
    if told:
        types = (json.loads(told).get("autoscaler_report") or {}).get("node_type_mapping") or {}
        return _are_of_settings(types.values())
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    runs = status.stats.autoscaler_version not in (None, "0")
    return runs and _are_of_settings(node.ray_node_type_name for node in [*status.active_nodes, *status.idle_nodes])


def _are_of_settings(types: Iterable[str]) -> bool:
    return any(not name.startswith(FIXED_TYPE) for name in types)
