"""How many actors a job asks for, and what each one holds."""

import dataclasses
from collections.abc import Sequence

from flextok.runtime.compute import ComputeConfig

IMAGES_FOR_AN_ACTOR = 5000


@dataclasses.dataclass(frozen=True)
class Workers:
    """The actors of a job."""

    fewest: int
    most: int
    cpus: float
    gpus: float
    threads: int

    @property
    def device(self) -> str:
        """Where an actor's tokenizer lives."""
        return "cuda" if self.gpus else "cpu"


def choose_workers(
    shard_images: Sequence[int], compute: ComputeConfig, cluster_cpus: float, cluster_gpus: float = 0
) -> Workers:
    """The actors for shards of so many images, on a cluster that now has so many CPUs and GPUs.

    An actor costs seconds to start, so that a second one is asked for only when there is work for it. More than the
    cluster has now may be asked for: Ray Data starts them when resources come.
    """
    fewest, most = compute.tokenize_actors
    fewest = max(1, min(fewest, len(shard_images)))
    most = max(fewest, min(most, len(shard_images), 1 + sum(shard_images) // IMAGES_FOR_AN_ACTOR))
    if compute.gpus_per_worker:
        # The decoders of the actors that can run now share the CPUs, of which Ray reserves one for each actor only.
        at_once = max(1, min(most, int(cluster_gpus / compute.gpus_per_worker)))
        cpus = compute.threads or 1
    else:
        at_once = most
        cpus = compute.threads or max(1, int(cluster_cpus) // at_once)
    threads = compute.threads or max(1, int(cluster_cpus) // at_once)
    return Workers(fewest, most, min(cpus, max(1.0, cluster_cpus)), compute.gpus_per_worker, threads)
