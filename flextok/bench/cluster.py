"""What a shard costs beside its work: a job of many shards over many actors which tokenize nothing, on this machine.

    python -m flextok.bench.cluster --actors 64 --shards 20000

Driver, monitor, Ray and all actors share the cores here, so that the time a shard is more than the serial part of a real
cluster's. The actors wait for each other before the first shard, as those on machines of their own start at much the same
time; starting them all costs this machine some seconds of processor each. Ray's own start is not counted. Printed as
Markdown.
"""

import argparse
import dataclasses
import os
import sys
import time
from typing import Any

import ray

from flextok.data.corpus.reader import Shard
from flextok.data.tokens import ShardRecord, TokenMeta
from flextok.runtime.cluster import ensure_ray, ray_ended
from flextok.runtime.memory import peak_memory
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.scheduler import Workers, run_tasks
from flextok.tokenize.tasks import ShardTask
from flextok.tokenize.team import Team, row_tasks

HASH = "0" * 64


class IdleActor:
    """Takes part in a job as `ShardTokenizer` does, and does nothing for a shard."""

    def __init__(self, actors: int, monitor: Any):
        self._ready = time.time()
        self._actors = actors
        self._monitor = monitor
        self._team = Team(monitor)
        self._team.fit()

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        while self._actors:
            fit, _ = ray.get(self._monitor.fitness.remote())
            if fit < self._actors:
                time.sleep(1.0)
            else:
                self._actors = 0
        outcomes = self._team.work(row_tasks(row["task"]), self._make)
        return {"outcome": "\n".join(outcome.to_json() for outcome in outcomes)}

    def _make(self, task: ShardTask, helping: bool) -> ShardOutcome:
        if not helping:
            self._team.begin(task)
        record = ShardRecord(task.name, task.source.samples, HASH, HASH, HASH, 1, 0)
        return ShardOutcome(task.name, record, [], "", "", self._ready, time.time(), 0)


@dataclasses.dataclass(frozen=True)
class SchedulingSpeed:
    """How long a job without work took."""

    shards: int
    first_s: float
    """Until the first actor was ready."""
    start_s: float
    """Until all were, and the first shard was made."""
    rest_s: float
    driver_cpu_s: float
    peak_mib: float
    """Most memory of the driver."""

    @property
    def ms_a_shard(self) -> float:
        """Of the time after the start."""
        return 1000 * self.rest_s / self.shards


def measure_scheduling(actors: int, shards: int, images: int) -> SchedulingSpeed:
    """A job of `shards` shards of `images` images. Ray is connected, with a CPU for each actor."""
    tasks = [_task(number, images) for number in range(shards)]
    began: list[float] = []

    def show(done: int, failed: int) -> None:
        if done and not began:
            began.append(time.perf_counter())

    cpu, started, at = time.process_time(), time.perf_counter(), time.time()
    outcomes = run_tasks(tasks, IdleActor, {"actors": actors}, Workers(actors, actors, 1.0, 0.0, 1), show)
    ended = time.perf_counter()
    if {outcome.shard for outcome in outcomes if outcome.record} != {task.name for task in tasks}:
        raise RuntimeError("expected an outcome of each shard")
    peak_mib = peak_memory() / 2**20
    cpu_s = time.process_time() - cpu
    first_s = min(outcome.started for outcome in outcomes) - at
    return SchedulingSpeed(shards, first_s, began[0] - started, ended - began[0], cpu_s, peak_mib)


def _task(number: int, images: int) -> ShardTask:
    """As one of a real job, so that as much travels."""
    name = f"{number:06d}.tar"
    meta = TokenMeta(HASH, 64000, 256, HASH, name, HASH, preprocess={"crop": "center", "size": 256}, fingerprint=HASH)
    shard = Shard(name, f"s3://bucket/corpora/imagenet/train/shards/{name}", images, 2**27, HASH)
    dest = f"s3://bucket/tokens/imagenet/{name.removesuffix('.tar')}.parquet"
    return ShardTask("s3://bucket/corpora/imagenet/train", shard, dest, meta, False, HASH)


def main() -> None:
    """Measure and print the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=64)
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--images", type=int, nargs="+", default=[50, 1000], help="in a shard, a job for each")
    arguments = parser.parse_args()
    print(
        "## What a shard costs beside its work\n\n"
        f"`{' '.join(['python -m flextok.bench.cluster', *sys.argv[1:]])}`: {arguments.shards:,} shards, "
        f"{arguments.actors} actors that do nothing, all on {os.cpu_count()} cores.\n\n"
        "| images in a shard | first actor ready, s (aim 60) | all ready, s | ms a shard (aim 5) "
        "| driver's processor, ms a shard | driver's memory, MiB (aim 1000) |\n| --- | --- | --- | --- | --- | --- |"
    )
    with ray_ended():
        ensure_ray("local", arguments.actors)
        for images in arguments.images:
            speed = measure_scheduling(arguments.actors, arguments.shards, images)
            print(
                f"| {images} | {speed.first_s:.0f} | {speed.start_s:.0f} | {speed.ms_a_shard:.1f} "
                f"| {1000 * speed.driver_cpu_s / speed.shards:.1f} | {speed.peak_mib:.0f} |",
                flush=True,
            )
    print()


if __name__ == "__main__":
    main()
