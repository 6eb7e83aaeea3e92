"""An arithmetic coder (Witten, Neal and Cleary 1987) in integers alone: what two machines with the same tables agree on."""

from collections.abc import Iterator

import numpy as np

BITS = 32
WHOLE, HALF, QUARTER = 1 << BITS, 1 << (BITS - 1), 1 << (BITS - 2)
TABLE = 1 << 22
"""The most that the frequencies of a table sum to; at least 1 each, so that every id can be written."""


def tables(logits_BV: np.ndarray) -> np.ndarray:
    """Cumulative frequencies int64 [B, V + 1] of softmax(logits)."""
    shifted = logits_BV.astype(np.float64) - logits_BV.max(axis=1, keepdims=True)
    p_BV = np.exp(shifted)
    p_BV /= p_BV.sum(axis=1, keepdims=True)
    frequencies = 1 + np.floor(p_BV * (TABLE - p_BV.shape[1])).astype(np.int64)
    return np.concatenate([np.zeros((len(p_BV), 1), np.int64), frequencies.cumsum(axis=1)], axis=1)


class Writer:
    """Takes ids with their tables; `finish` gives the bytes."""

    def __init__(self) -> None:
        self._low, self._high, self._waiting, self._bits = 0, WHOLE - 1, 0, []

    def write(self, id: int, table: np.ndarray) -> None:
        width, total = self._high - self._low + 1, int(table[-1])
        self._high = self._low + width * int(table[id + 1]) // total - 1
        self._low = self._low + width * int(table[id]) // total
        while True:
            if self._high < HALF:
                self._put(0)
            elif self._low >= HALF:
                self._put(1)
                self._low, self._high = self._low - HALF, self._high - HALF
            elif self._low >= QUARTER and self._high < 3 * QUARTER:
                self._waiting += 1
                self._low, self._high = self._low - QUARTER, self._high - QUARTER
            else:
                return
            self._low, self._high = 2 * self._low, 2 * self._high + 1

    def finish(self) -> bytes:
        self._waiting += 1
        self._put(int(self._low >= QUARTER))
        return np.packbits(self._bits).tobytes()

    def _put(self, bit: int) -> None:
        self._bits += [bit, *[1 - bit] * self._waiting]
        self._waiting = 0


class Reader:
    """Gives the ids of `code` back, each by the table that it was written with."""

    def __init__(self, code: bytes):
        self._bits: Iterator[int] = iter(np.unpackbits(np.frombuffer(code, np.uint8)).tolist())
        self._low, self._high, self._value = 0, WHOLE - 1, 0
        for _ in range(BITS):
            self._value = 2 * self._value + next(self._bits, 0)

    def read(self, table: np.ndarray) -> int:
        width, total = self._high - self._low + 1, int(table[-1])
        place = ((self._value - self._low + 1) * total - 1) // width
        id = int(np.searchsorted(table, place, side="right")) - 1
        self._high = self._low + width * int(table[id + 1]) // total - 1
        self._low = self._low + width * int(table[id]) // total
        while True:
            if self._high < HALF:
                taken = 0
            elif self._low >= HALF:
                taken = HALF
            elif self._low >= QUARTER and self._high < 3 * QUARTER:
                taken = QUARTER
            else:
                return id
            self._low, self._high = 2 * (self._low - taken), 2 * (self._high - taken) + 1
            self._value = 2 * (self._value - taken) + next(self._bits, 0)
