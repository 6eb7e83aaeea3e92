"""The pictures of a corpus: where the bytes of each lie, and its crops by the one door."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.blocks import Blocks
from flextok.data.corpus.crops import ByteRange, Crops, Undecodable, View, Window, read_crops
from flextok.data.corpus.layout import index_url
from flextok.data.corpus.reader import Corpus, Shard, read_indexes
from flextok.errors import IntegrityError

ROWS_AT_ONCE = 1024
INDEX_ROWS = 1 << 21
"""Of about 200 bytes each."""
GROUP_PICTURES = 16
GROUP_BYTES = 4 * 2**20
"""A decoder gets several small pictures or one large picture at once."""
GAP_BYTES = 2**16
"""Labels, captions and JSON between two pictures; what lies further apart is not read together."""


@dataclass(frozen=True)
class Picture:
    """A picture of a shard, or a file of its own."""

    url: str
    range: ByteRange
    key: str
    label: int | None = None
    text: str | None = None


class Pictures:
    """Every picture of a corpus by its row in the corpus' index (without label and text).

    The shards' indexes are read as they are needed, and those that were used last kept: about `INDEX_ROWS` rows.
    """

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        self.shards = Blocks([shard.samples for shard in corpus.shards], self._read, INDEX_ROWS)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, row: int) -> Picture:
        return self.at(np.array([row]))[0]

    def at(self, rows: np.ndarray) -> list[Picture]:
        """The pictures of these rows; raises IntegrityError where an index is not that of its shard."""
        found = dict[int, Picture]()
        for places, (shard, index), within in self.shards.parts(rows):
            for place, (key, *where) in zip(places.tolist(), index[within].iter_rows(), strict=True):
                found[place] = Picture(shard.url, ByteRange(*where), key)
        return [found[place] for place in range(len(rows))]

    def _read(self, number: int) -> tuple[Shard, pl.DataFrame]:
        shard = self._corpus.shards[number]
        try:
            index = read_indexes(self._corpus.url, [shard.name], ["key", "offset", "size", "sha256"]).drop("shard")
        except pa.ArrowException as error:
            raise IntegrityError(f"expected the index of {shard.url}, found: {error}; shard again") from None
        if len(index) != shard.samples:
            raise IntegrityError(
                f"expected {shard.samples} samples in the index of {shard.url}, found {len(index)}; shard again"
            )
        return shard, index


class Group(NamedTuple):
    """Pictures that lie close together in one file, to be read and decoded at once."""

    url: str
    pictures: list[Picture]


def shard_pictures(corpus_url: str, shard: Shard, index_sha256: str | None) -> Iterator[Picture]:
    """The pictures of a shard in their order, from the corpus' index beside it.

    `index_sha256` is what the corpus' manifest says of the index; None to take it as it is. Raises IntegrityError when
    the shard has not the size, or the index not the hash and number of samples, that the manifests say.
    """
    if (size := storage.size(shard.url)) != shard.bytes:
        raise IntegrityError(f"expected {shard.bytes} bytes in {shard.url}, found {size}; run `flextok verify` on it")
    index = storage.read_bytes(index_url(corpus_url, shard.name))
    if index_sha256 is not None and hashlib.sha256(index).hexdigest() != index_sha256:
        raise IntegrityError(
            f"expected the index of {shard.url} as the corpus' manifest says, found other bytes; shard again"
        )
    samples = 0
    for row in _rows(index, shard.url):
        samples += 1
        where = ByteRange(row["offset"], row["size"], row["sha256"])
        yield Picture(shard.url, where, row["key"], row["label"], row["text"])
    if samples != shard.samples:
        raise IntegrityError(f"expected {shard.samples} samples in the index of {shard.url}, found {samples}")


def _rows(index: bytes, url: str) -> Iterator[dict[str, Any]]:
    columns = ["key", "label", "text", "offset", "size", "sha256"]
    try:
        for batch in pq.ParquetFile(io.BytesIO(index)).iter_batches(ROWS_AT_ONCE, columns=columns):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"expected the index of {url}, found: {error}; shard again") from None


def grouped(pictures: Iterable[Picture]) -> Iterator[Group]:
    """Consecutive pictures, as many as a decoder gets at once."""
    group: list[Picture] = []
    for picture in pictures:
        if group and not _belongs(picture, group):
            yield Group(group[0].url, group)
            group = []
        group.append(picture)
    if group:
        yield Group(group[0].url, group)


def crops_of(
    pictures: Iterable[Picture], size_px: int, view: View | Window = "center"
) -> Iterator[tuple[Picture, np.ndarray]]:
    """Each of `pictures` with its crop, uint8 [size_px, size_px, 3], in their order.

    Raises IntegrityError, naming the picture, where its bytes are not those that were sharded or do not decode.
    """
    for url, group in grouped(pictures):
        found = read_crops(url, [picture.range for picture in group], size_px, (view,))
        for picture, crops in zip(group, found, strict=True):
            yield picture, _only(picture, crops)


def _only(picture: Picture, crops: Crops | Undecodable) -> np.ndarray:
    if isinstance(crops, Undecodable):
        raise IntegrityError(
            f"expected the picture {picture.key} in {picture.url} as it was sharded, found {crops.reason}: {crops.detail}; "
            "run `flextok verify` on the corpus and shard it again"
        )
    return crops.pixels[0]


def _belongs(picture: Picture, group: list[Picture]) -> bool:
    first, last = group[0].range, group[-1].range
    gap = picture.range.offset - (last.offset + last.size)
    size = picture.range.offset + picture.range.size - first.offset
    near = picture.url == group[0].url and 0 <= gap <= GAP_BYTES
    return near and len(group) < GROUP_PICTURES and size <= GROUP_BYTES
