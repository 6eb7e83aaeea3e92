"""The images an evaluation looks at: chosen by key, cropped as the tokenizer saw them, streamed in batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flextok.data.config import ImageLimits
from flextok.data.corpus.reader import Corpus, iter_shard
from flextok.data.images import ImageError, center_crop, decode, to_png
from flextok.errors import IntegrityError

# What a corpus holds has passed the limits it was sharded with, which may be wider than the default.
ANY_SIZE = ImageLimits(min_side=1, max_aspect=1e6, max_pixels=170_000_000, max_bytes=2**30)


@dataclass(frozen=True)
class ImageBatch:
    """Some images of a corpus: `images_BHWC` uint8, with their keys and labels (None where there is none)."""

    keys: list[str]
    labels: list[int | None]
    images_BHWC: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


def choose_keys(keys: Sequence[str], count: int | None) -> list[str]:
    """`count` of the keys (all when None), those with the smallest hash; a smaller choice lies within a larger one.

    So a part of a corpus sorted by class is still a fair sample of it. Raises IntegrityError for duplicate keys,
    which would count an image twice.
    """
    if len(set(keys)) != len(keys):
        raise IntegrityError(f"expected unique keys, found {len(keys) - len(set(keys))} duplicates; run flextok verify")
    ordered = sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())
    return ordered[:count]


def stream_images(corpus: Corpus, keys: Sequence[str], size_px: int, batch_size: int) -> Iterator[ImageBatch]:
    """The images of `keys`, cropped to [size_px, size_px], in corpus order; memory holds one batch.

    Raises IntegrityError for an image which does not decode, or a key which is not there.
    """
    wanted = set(keys)
    held: list[tuple[str, int | None, np.ndarray]] = []
    for shard in corpus.shards:
        for sample in iter_shard(corpus.url, shard):
            if sample.key not in wanted:
                continue
            wanted.remove(sample.key)
            try:
                picture = decode(sample.image, ANY_SIZE).image
            except ImageError as error:
                raise IntegrityError(f"expected an image under {sample.key} in {corpus.url}, found: {error}") from None
            held.append((sample.key, sample.label, center_crop(picture, size_px)))
            if len(held) == batch_size:
                yield _batch(held)
                held = []
    if held:
        yield _batch(held)
    if wanted:
        raise IntegrityError(f"expected key {min(wanted)} in {corpus.url}, found none; run flextok verify")


def _batch(held: list[tuple[str, int | None, np.ndarray]]) -> ImageBatch:
    keys, labels, images = zip(*held, strict=True)
    return ImageBatch(list(keys), list(labels), np.stack(images))


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], gap_px: int = 2) -> bytes:
    """A PNG of equally large images in rows, a white gap between them."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet_shape = (len(rows) * (height + gap_px) - gap_px, columns * (width + gap_px) - gap_px, 3)
    sheet = np.full(sheet_shape, 255, np.uint8)
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            y, x = top * (height + gap_px), left * (width + gap_px)
            sheet[y : y + height, x : x + width] = image
    return to_png(sheet)
