"""How fast features of a corpus are gathered, against the bare extractor on ready pictures.

    python -m flextok.bench.evaluate [--pictures 512] [--threads 1]

The pass is that of `reference` and of evaluations: from image shards over reading, decoding, cropping and the extractor to
sums in float64, and here also the crops on disk. Both run in turn in the same process, over the same drawn scenes in the
page cache; medians of all rounds count. Loading the network is in neither.
"""

import argparse
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus
from flextok.data.scenes import ScenesConfig
from flextok.evaluate.config import ReferenceConfig
from flextok.evaluate.features import Extractor, load_extractor
from flextok.evaluate.images import ImageBatch, stream_images
from flextok.evaluate.reference import make_reference

EXTRACTOR = "efficientnet_lite0"
CASES = ((32, 128), (128, 128), (256, 224))
"""Sides of the pictures, and of what the extractor resizes them to; the first is the smoke profile's."""


@dataclass(frozen=True)
class GatheringSpeed:
    """Pictures a second, medians, of one size of pictures and one of the extractor's input."""

    image_px: int
    input_px: int
    pass_per_s: float
    bare_per_s: float

    @property
    def share(self) -> float:
        """What the pass reaches of the bare extractor's speed; the aim is 0.9."""
        return self.pass_per_s / self.bare_per_s


def measure_gathering(image_px: int, input_px: int, pictures: int, rounds: int, batch_size: int) -> GatheringSpeed:
    """The pass and the bare loop in turn, once before they count."""
    extractor = load_extractor(EXTRACTOR, input_px)
    config = ReferenceConfig(extractor=EXTRACTOR, extractor_input_px=input_px, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        corpus_url, made = f"{scratch}/corpus", Path(scratch) / "reference"
        drawn = ScenesConfig(train_samples=1, val_samples=pictures, image_px=image_px, seed=0)
        shard_corpus(CorpusConfig(source="scenes", scenes=drawn), "val", corpus_url, workers=1, progress=False)
        corpus = Corpus.open(corpus_url)
        keys = corpus.index("key")["key"].to_list()
        ready = list(stream_images(corpus, keys, image_px, batch_size))
        through, bare = [], []
        for turn in range(rounds + 1):
            shutil.rmtree(made, ignore_errors=True)
            seconds = (
                _seconds(lambda: make_reference(corpus_url, str(made), config, image_px)),
                _seconds(lambda: _look(extractor, ready)),
            )
            if turn:
                through.append(seconds[0])
                bare.append(seconds[1])
    return GatheringSpeed(image_px, input_px, pictures / statistics.median(through), pictures / statistics.median(bare))


def _look(extractor: Extractor, ready: list[ImageBatch]) -> None:
    for batch in ready:
        extractor(batch.images_BHWC)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"## Features of a corpus, {arguments.threads} threads\n\n"
        f"`{' '.join(['python -m flextok.bench.evaluate', *sys.argv[1:]])}` on {platform.machine()}, torch "
        f"{torch.__version__}: {arguments.pictures:,} drawn\nscenes, batches of {arguments.batch}, {EXTRACTOR} in float32; "
        f"medians of {arguments.rounds} rounds in turn.\n\n"
        "| pictures, px | extractor's input, px | shards to statistics, pictures/s | bare extractor, pictures/s | share (aim "
        "0.90) |\n| --- | --- | --- | --- | --- |"
    )
    for image_px, input_px in CASES:
        found = measure_gathering(image_px, input_px, arguments.pictures, arguments.rounds, arguments.batch)
        print(f"| {image_px} | {input_px} | {found.pass_per_s:.0f} | {found.bare_per_s:.0f} | {found.share:.2f} |")
    print()


if __name__ == "__main__":
    main()
