"""Shards made by several processes, in bounded numbers."""

from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

from flextok.data.corpus.builder import CorpusShardRecord, PlannedInput, ShardBuilder
from flextok.errors import FlextokError
from flextok.runtime.ahead import as_finished
from flextok.runtime.processes import ProcessPool

ShardJob = tuple[str, str, list[PlannedInput]]
"""Shard, fingerprint, inputs."""

_builder: ShardBuilder | None = None


def build_shards(
    builder: ShardBuilder, jobs: Iterable[ShardJob], workers: int
) -> Iterator[tuple[str, CorpusShardRecord]]:
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


def _start_worker(builder: ShardBuilder) -> None:
    global _builder
    _builder = builder


def _build(shard: str, fingerprint: str, inputs: list[PlannedInput]) -> CorpusShardRecord:
    assert _builder is not None
    return _builder.build(shard, fingerprint, inputs)
