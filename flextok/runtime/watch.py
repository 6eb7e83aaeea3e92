"""What a job on a cluster waits for, and which nodes come and go, in lines of ours in place of Ray's."""

import logging
import time

from flextok.runtime.nodes import NOTHING, Beside, ClusterNodes, cluster_nodes, size_text

LOOK_EVERY_S = 2.0
WAIT_S = 30.0
"""Without a running worker, after which a job says what it waits for."""
logger = logging.getLogger(__name__)


class ClusterWatch:
    """Looks at the cluster's nodes beside a job whose workers each ask for `cpus`, `gpus` and `beside`.

    It needs `fewest` of them. Ray is connected, and nothing asked for yet.
    """

    def __init__(self, what: str, cpus: float, gpus: float, hint: str, fewest: int = 1, beside: Beside = NOTHING):
        self._what, self._cpus, self._gpus, self._hint, self._fewest = what, cpus, gpus, hint, fewest
        self._beside = beside
        self._nodes = _alive()
        self._next = 0.0
        self._idle_since: float | None = None
        self._told = False

    def look(self, begun: bool) -> None:
        """Tell what changed since the last look, at most every 2 s; `begun` says whether workers have begun by now."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LOOK_EVERY_S
        self.tell_changes()
        nodes = cluster_nodes(self._beside)
        if begun and ClusterNodes(nodes.there).places(self._cpus, self._gpus) >= self._fewest:
            self._idle_since, self._told = None, False
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= WAIT_S and not self._told:
            self._told = True
            logger.warning(
                "waiting for %s on one node for %s: the cluster has %s; free in all: %s; %s",
                size_text(self._cpus, self._gpus, self._beside), self._what, nodes.described(), _free(self._gpus > 0), self._hint,
            )  # fmt: skip

    def tell_changes(self) -> None:
        """Tell which nodes came and went since the last look; once more at the end of a job that may be over in seconds."""
        alive = _alive()
        for node in self._nodes.keys() - alive.keys():
            logger.warning("lost node %s: what it was at work on is made again elsewhere", self._nodes[node])
        for node in alive.keys() - self._nodes.keys():
            logger.info("node %s joined", alive[node])
        self._nodes = alive


def _alive() -> dict[str, str]:
    """Addresses of the cluster's nodes by their ids."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _free(with_gpus: bool) -> str:
    import ray

    free = ray.available_resources()
    return size_text(free.get("CPU", 0), free.get("GPU", 0) if with_gpus else 0)
