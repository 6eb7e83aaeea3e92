"""The same work on many items: here, or by workers on the nodes of a cluster."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from flextok.runtime.ahead import ahead
from flextok.runtime.cluster import ensure_ray
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.nodes import cluster_nodes
from flextok.runtime.ray_pool import RayPool

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[T], R]

_work: Work[Any, Any] | None = None


@contextlib.contextmanager
def spread(
    what: str, make: Callable[..., Work[T, R]], arguments: tuple[Any, ...], compute: ComputeConfig | None
) -> Iterator[Callable[[Iterable[T]], Iterator[R]]]:
    """A function from items to their results, in order, for the block. `make(*arguments)` gives what does the work.

    It is made once here or, where `compute` has the address of a cluster, once in each worker, of which there are as
    many as may tokenize; `make` must be importable, and raises FlextokError where a node cannot do the work. Results come
    in the order of the items, and so do not depend on the number of workers.
    """
    if compute is None or not compute.on_cluster:
        work = make(*arguments)
        yield lambda items: map(work, items)
        return
    ensure_ray(compute.address)
    most, gpus = compute.tokenize_actors[1], compute.gpus_per_worker
    cpus = compute.threads or (1 if gpus else cluster_nodes(compute.resources).largest_share(most))
    with RayPool(what, compute, _start, (cpus, make, arguments), most, cpus, gpus) as pool:
        depth = 2 * pool.workers
        yield lambda items: (result for _, result in ahead(lambda item: pool.submit(_call, item), items, depth))


def _start(threads: int, make: Callable[..., Work[Any, Any]], arguments: tuple[Any, ...]) -> None:
    import torch

    global _work
    torch.set_num_threads(threads)
    _work = make(*arguments)


def _call(item: Any) -> Any:
    assert _work is not None
    return _work(item)
