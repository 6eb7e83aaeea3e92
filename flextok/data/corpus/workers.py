"""Shards made by several processes, of this machine or of a cluster, in bounded numbers."""

from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

from flextok.data.corpus.builder import CorpusShardRecord, PlannedInput, ShardBuilder
from flextok.data.corpus.sight import Sight
from flextok.errors import FlextokError
from flextok.runtime.ahead import as_finished
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.processes import ProcessPool

ShardJob = tuple[str, str, list[PlannedInput]]
"""Shard, fingerprint, inputs."""
Made = tuple[str, CorpusShardRecord]

_builder: ShardBuilder | None = None


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
    from flextok.runtime.ray_pool import RayPool

    with RayPool("a sharding worker", compute, _start_on_node, (builder, sight), workers, calls=count) as pool:
        for (shard, _, _), record in as_finished(lambda job: pool.submit(_build, *job), jobs, 2 * pool.workers):
            yield shard, record


def _start_worker(builder: ShardBuilder) -> None:
    global _builder
    _builder = builder


def _start_on_node(builder: ShardBuilder, sight: Sight) -> None:
    sight.prove(builder)
    _start_worker(builder)


def _build(shard: str, fingerprint: str, inputs: list[PlannedInput]) -> CorpusShardRecord:
    assert _builder is not None
    return _builder.build(shard, fingerprint, inputs)
