"""How fast sharding is, against the least that must be done: reading, decoding and hashing each picture once.

    python -m flextok.bench.data FOLDER [--pictures 40000] [--workers 2]

Both sides run in the same call, in turns, over the same files in the page cache, repeated to the wanted count.
Sharding's time counts everything: start of the workers, listing, plan, and the manifest.
"""

import argparse
import hashlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.runtime.memory import peak_memory

ROUNDS = 2


@dataclass(frozen=True)
class ShardingSpeed:
    """Pictures a second, the best of ROUNDS, and this process's peak memory in MiB."""

    pictures: int
    sharding_per_s: float
    bare_per_s: float
    peak_mib: float

    @property
    def share(self) -> float:
        """What sharding reaches of the bare loop's speed; the aim is 0.85."""
        return self.sharding_per_s / self.bare_per_s


def measure_sharding(folder: Path, pictures: int = 40_000, workers: int = 2) -> ShardingSpeed:
    """Shard the pictures below `folder`, repeated by links to `pictures` files, and run the bare loop beside it."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        paths = repeat_by_links(folder, source, pictures)
        sharding, bare = [], []
        for _ in range(ROUNDS):
            bare.append(_timed_bare(paths, workers))
            started = time.perf_counter()
            config = CorpusConfig.model_validate(
                {"source": str(source), "format": "folder", "max_reject_fraction": 1.0}
            )
            shard_corpus(config, "all", str(Path(scratch) / "out"), workers, progress=False)
            sharding.append(time.perf_counter() - started)
            shutil.rmtree(Path(scratch) / "out")
    peak_mib = peak_memory() / 2**20
    return ShardingSpeed(pictures, pictures / min(sharding), pictures / min(bare), peak_mib)


def repeat_by_links(folder: Path, goal: Path, count: int) -> list[str]:
    """`count` files below `goal`, links to the pictures below `folder` again and again; gives back their paths."""
    originals = pictures_below(folder)
    paths = []
    for number in range(count):
        original = originals[number % len(originals)]
        path = goal / f"{number // 1000:05d}" / f"{number:07d}{original.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(original.resolve(), path)
        paths.append(str(path))
    return paths


def pictures_below(folder: Path) -> list[Path]:
    """All JPEG and PNG files below `folder`, by their names."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )


def _timed_bare(paths: list[str], workers: int) -> float:
    """Seconds of a bare pool of processes that reads, decodes and hashes, its start not counted."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(_bare, paths[: 2 * workers], chunksize=1)
        started = time.perf_counter()
        pool.map(_bare, paths, chunksize=256)
        return time.perf_counter() - started


def _bare(path: str) -> str:
    raw = Path(path).read_bytes()
    Image.open(io.BytesIO(raw)).load()
    return hashlib.sha256(raw).hexdigest()


def main() -> None:
    """Measure and print the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    speed = measure_sharding(arguments.folder, arguments.pictures, arguments.workers)
    print(
        "## Sharding\n\n"
        f"`{' '.join(['python -m flextok.bench.data', *sys.argv[1:]])}`: {speed.pictures:,} pictures, {arguments.workers} "
        "processes each; the bare loop reads, decodes and hashes.\n\n"
        "| sharding, pictures/s | bare loop, pictures/s | share (aim 0.85) | peak memory, MiB |\n"
        "| --- | --- | --- | --- |\n"
        f"| {speed.sharding_per_s:.0f} | {speed.bare_per_s:.0f} | {speed.share:.2f} | {speed.peak_mib:.0f} |\n"
    )


if __name__ == "__main__":
    main()
