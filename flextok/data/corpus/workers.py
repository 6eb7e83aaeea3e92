"""Shards made by several processes, of this machine or of a cluster, in bounded numbers."""

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

from flextok import storage
from flextok.data.corpus.builder import CorpusShardRecord, PlannedInput, ShardBuilder, read_record
from flextok.data.corpus.layout import index_url
from flextok.data.corpus.sight import Sight
from flextok.errors import FlextokError
from flextok.runtime.ahead import as_finished
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.fitness import UnfitNodeError, unfit_line
from flextok.runtime.processes import ProcessPool
from flextok.runtime.ray_pool import RayPool

ShardJob = tuple[str, str, list[PlannedInput]]
"""Shard, fingerprint, inputs."""
Made = tuple[str, CorpusShardRecord]

_builder: ShardBuilder | None = None
_sight: Sight | None = None


def build_shards(builder: ShardBuilder, jobs: Iterable[ShardJob], workers: int) -> Iterator[Made]:
    """Makes the shards of `jobs`, in this process for one worker; gives them back as they are finished."""
    if workers <= 1:
        yield from ((job[0], builder.build(*job)) for job in jobs)
        return
    try:
        with ProcessPool(workers, _start_worker, (builder,)) as pool:
            for (shard, _, _), record in as_finished(lambda job: pool.submit(_build, *job), jobs, 2 * workers):
                yield shard, record
    except BrokenProcessPool:
        raise FlextokError(
            "a worker process was killed, most likely for want of memory; run the same command again with fewer --workers "
            "(finished shards are kept)"
        ) from None


def build_shards_on_cluster(
    builder: ShardBuilder,
    jobs: Iterable[ShardJob],
    count: int,
    workers: int | None,
    compute: ComputeConfig,
    sight: Sight,
) -> Iterator[Made]:
    """The same, of `count` jobs, by workers on the nodes of the cluster that this process is connected to.

    Only nodes that have `sight` take part; None takes as many workers as there is room for.
    """
    with RayPool("a sharding worker", compute, _start_on_node, (builder, sight), workers, calls=count) as pool:
        for (shard, _, _), record in as_finished(lambda job: pool.submit(_build_on_node, *job), jobs, 2 * pool.workers):
            yield shard, record


def _start_worker(builder: ShardBuilder) -> None:
    global _builder
    _builder = builder


def _start_on_node(builder: ShardBuilder, sight: Sight) -> None:
    global _sight
    sight.prove(builder)
    _start_worker(builder)
    _sight = sight


def _build(shard: str, fingerprint: str, inputs: list[PlannedInput]) -> CorpusShardRecord:
    assert _builder is not None
    return _builder.build(shard, fingerprint, inputs)


def _build_on_node(shard: str, fingerprint: str, inputs: list[PlannedInput]) -> CorpusShardRecord:
    """`_build`; raises UnfitNodeError where it was this node that could not read or write, and leaves no such shard."""
    try:
        made = _build(shard, fingerprint, inputs)
    except OSError:
        _require_sight(shard)
        raise
    assert _builder is not None
    found = read_record(_builder.dest, shard)
    if found is None or any(reject.reason == "unreadable" for reject in found[1]):
        _require_sight(shard)
    return made


def _require_sight(shard: str) -> None:
    assert _builder is not None and _sight is not None
    try:
        _sight.prove(_builder)
    except FlextokError as error:
        with contextlib.suppress(OSError):
            storage.remove(index_url(_builder.dest, shard))  # which commits the shard
        raise UnfitNodeError(unfit_line(error)) from None
