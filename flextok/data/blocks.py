"""Rows that are stored in blocks, as row groups of files, of which memory holds a bounded number at a time."""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

from flextok.runtime.ahead import ahead

T = TypeVar("T")
READERS = 4


class Blocks(Generic[T]):
    """Blocks of `rows` rows each, one after another, which `read` gives by their numbers.

    Those that were used last are kept, as many as hold `most_rows` rows and one block more. `read` is called by several
    threads at once, `parts` by one alone.
    """

    def __init__(self, rows: Sequence[int] | np.ndarray, read: Callable[[int], T], most_rows: int):
        self.rows = np.asarray(rows, np.int64)
        self._ends = np.cumsum(self.rows)
        self._read, self.most_rows = read, most_rows
        self._room = most_rows + int(self.rows.max(initial=0))
        self._kept: collections.OrderedDict[int, T] = collections.OrderedDict()
        self._kept_rows = 0
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="blocks")
        self.all_fit = len(self) <= most_rows
        """Whether all blocks are kept, once they were used."""

    def __len__(self) -> int:
        """Rows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def parts(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, T, np.ndarray]]:
        """The blocks of the rows at `indices`: of each the places in `indices`, the block, and its rows of these places."""
        numbers = np.searchsorted(self._ends, indices, side="right")
        # In the order of `indices`, and kept ones first: where one window of rows ends in the midst of them and another
        # begins, the blocks of the first are used before those of the second take their room.
        wanted = dict.fromkeys(numbers.tolist())
        missing = [number for number in wanted if number not in self._kept]
        for number in wanted.keys() - set(missing):
            self._kept.move_to_end(number)
            yield self._part(indices, numbers, number, self._kept[number])
        for number, block in ahead(lambda number: self._pool.submit(self._read, number), missing, READERS):
            self._keep(number, block)
            yield self._part(indices, numbers, number, block)

    def _part(
        self, indices: np.ndarray, numbers: np.ndarray, number: int, block: T
    ) -> tuple[np.ndarray, T, np.ndarray]:
        places = np.flatnonzero(numbers == number)
        return places, block, indices[places] - (self._ends[number] - self.rows[number])

    def _keep(self, number: int, block: T) -> None:
        self._kept[number] = block
        self._kept_rows += int(self.rows[number])
        while self._kept_rows > self._room:
            oldest, _ = self._kept.popitem(last=False)
            self._kept_rows -= int(self.rows[oldest])
