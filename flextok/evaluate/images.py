"""The images an evaluation looks at: chosen by key, cropped as the tokenizer saw them, streamed in batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flextok.data.corpus.pictures import Picture, crops_of, shard_pictures
from flextok.data.corpus.reader import Corpus
from flextok.data.images import to_png
from flextok.errors import IntegrityError


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

    Raises IntegrityError for an image which is not as it was sharded or does not decode, or a key which is not there.
    """
    wanted = set(keys)
    held: list[tuple[str, int | None, np.ndarray]] = []
    for picture, crop in crops_of(_chosen(corpus, wanted), size_px):
        held.append((picture.key, picture.label, crop))
        if len(held) == batch_size:
            yield _batch(held)
            held = []
    if held:
        yield _batch(held)
    if wanted:
        raise IntegrityError(f"expected key {min(wanted)} in {corpus.url}, found none; run flextok verify")


def _chosen(corpus: Corpus, wanted: set[str]) -> Iterator[Picture]:
    """The pictures whose keys are `wanted`, in corpus order; what was found is no longer wanted."""
    for shard in corpus.shards:
        for picture in shard_pictures(corpus.url, shard, corpus.index_sha256(shard)):
            if picture.key in wanted:
                wanted.remove(picture.key)
                yield picture


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
