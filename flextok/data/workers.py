"""Shards made by several processes, in bounded numbers, with no process outliving its parent."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait as wait_for

from flextok.data.shard_builder import PlannedInput, ShardBuilder, ShardRecord
from flextok.errors import FlextokError

ShardJob = tuple[str, str, list[PlannedInput]]
"""Shard, fingerprint, inputs."""

_builder: ShardBuilder | None = None


def build_shards(builder: ShardBuilder, jobs: Iterable[ShardJob], workers: int) -> Iterator[tuple[str, ShardRecord]]:
    """Makes the shards of `jobs`, in this process for one worker; gives them back as they are finished."""
    if workers <= 1:
        yield from ((job[0], builder.build(*job)) for job in jobs)
        return
    # spawn: a fork would copy the locks of Arrow's and Polars' threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(builder,))
    try:
        coming = iter(jobs)
        pending: dict[Future[ShardRecord], str] = {}
        while True:
            for job in islice(coming, 2 * workers - len(pending)):
                pending[pool.submit(_build, *job)] = job[0]
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                shard = pending.pop(future)
                yield shard, future.result()
    except BrokenProcessPool:
        raise FlextokError(
            "a worker process was killed, most likely for want of memory; run the same command again with fewer --workers "
            "(finished shards are kept)"
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):  # a worker in the middle of a shard need not finish it
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(builder: ShardBuilder) -> None:
    global _builder
    _builder = builder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _build(shard: str, fingerprint: str, inputs: list[PlannedInput]) -> ShardRecord:
    assert _builder is not None
    return _builder.build(shard, fingerprint, inputs)
