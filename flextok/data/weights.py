"""How often the rows of a mixture are drawn: a weight for each part of it, and of each row the part it belongs to."""

from collections.abc import Sequence

import numpy as np

CHUNK_ROWS = 1 << 20


class PartWeights:
    """The weights of rows by the numbers of their parts (a byte or two a row): `weights[rows]`, float64 of mean 1."""

    def __init__(self, weights: Sequence[float], parts_N: np.ndarray):
        chunks = range(0, len(parts_N), CHUNK_ROWS)
        counts = sum(np.bincount(parts_N[at : at + CHUNK_ROWS], minlength=len(weights)) for at in chunks)
        self._values = np.asarray(weights, np.float64) / (np.dot(weights, counts) / len(parts_N))
        self._parts_N = parts_N

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._values[self._parts_N[rows]]


def part_type(parts: int) -> type[np.unsignedinteger]:
    """The smallest type for the numbers of so many parts."""
    return np.uint8 if parts <= 1 << 8 else np.uint16 if parts <= 1 << 16 else np.uint32
