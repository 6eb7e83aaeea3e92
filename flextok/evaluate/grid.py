"""A few pictures kept for people to look at, by key and number of tokens."""

import io
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.images import to_png
from flextok.evaluate.images import contact_sheet

# In place of a number of tokens: the original, its way through the latents alone, and a picture that somebody else made.
ORIGINAL, LATENTS, GIVEN = 0, -1, -3
GRID = "grid.parquet"


Shown = tuple[str, int | None, np.ndarray]
"""Key, label and picture uint8 [H, W, 3]."""


def shown(
    wanted: Container[str], keys: Sequence[str], labels: Sequence[int | None], images_BHWC: np.ndarray
) -> list[Shown]:
    """Those of a batch whose keys are `wanted`."""
    batch = zip(keys, labels, images_BHWC, strict=True)
    return [(key, label, image) for key, label, image in batch if key in wanted]


class PictureGrid:
    """Pictures of the images `keys`, gathered as batches go by."""

    def __init__(self, keys: Sequence[str]):
        self.keys = list(keys)
        self._labels: dict[str, int | None] = {}
        self._pictures: dict[tuple[str, int], np.ndarray] = {}

    def take(self, k: int, pictures: Sequence[Shown]) -> None:
        """Keep pictures at `k` tokens, all of images that belong here."""
        for key, label, image in pictures:
            self._labels[key] = label
            self._pictures[key, k] = image

    def to_parquet(self) -> bytes:
        """A table of key, label, k, png."""
        cells = [(key, k) for wanted in self.keys for key, k in self._pictures if key == wanted]
        columns = {
            "key": pa.array([key for key, _ in cells], pa.string()),
            "label": pa.array([self._labels[key] for key, _ in cells], pa.int32()),
            "k": pa.array([k for _, k in cells], pa.int32()),
            "png": pa.array([to_png(self._pictures[cell]) for cell in cells], pa.binary()),
        }
        return parquet_bytes(pa.table(columns))

    def sheet(self, columns: Sequence[int]) -> bytes:
        """One PNG: a row for each image, a column for each of `columns`."""
        return contact_sheet([[self._pictures[key, k] for k in columns] for key in self.keys])


@dataclass(frozen=True)
class StoredPictures:
    """The PNG files of one image by number of tokens."""

    key: str
    label: int | None
    png: dict[int, bytes]


def read_grid(url: str) -> list[StoredPictures]:
    """The pictures stored in the evaluation folder `url`, in the order they were chosen."""
    with storage.open_read(storage.join(url, GRID)) as file:
        rows = pq.read_table(file).to_pylist()
    found: dict[str, StoredPictures] = {}
    for row in rows:
        found.setdefault(row["key"], StoredPictures(row["key"], row["label"], {})).png[row["k"]] = row["png"]
    return list(found.values())


def parquet_bytes(table: pa.Table) -> bytes:
    """`table` as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()
