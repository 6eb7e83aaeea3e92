"""Which samples a step sees: it follows from the seed and the place alone, as its random numbers do (`SampleRng`).

Place n counts every sample of the run: step s of global batch B covers places s*B .. (s+1)*B - 1, however many
workers share them. So a run resumes exactly after a kill, and one or many workers see the same numbers.
"""

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Weights(Protocol):
    """How often each sample is drawn, mean 1: an array, or what gives one for some of the samples."""

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Windows:
    """Samples that are stored in blocks and are more than memory holds."""

    blocks: np.ndarray
    """Samples of each block, int64; the blocks' samples follow each other."""
    samples: int
    """About how many samples are held at a time."""


class SampleOrder:
    """The sample at each place of a run, as an endless row of epochs of `num_samples` places.

    An epoch is a permutation of the samples. With `weights` (mean 1) that are not all equal, each sample stands in it
    as often as its weight says, rounded down or up at random (systematic sampling).
    """

    def __init__(self, seed: int, num_samples: int, weights: np.ndarray | None = None):
        self._seed, self._num_samples = seed, num_samples
        self._weights = weights if weights is not None and np.ptp(weights) > 0 else None
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def indices(self, places: range) -> np.ndarray:
        """int64 indices of the samples at `places`."""
        epochs = range(places.start // self._num_samples, (places.stop - 1) // self._num_samples + 1)
        row = np.concatenate([self._epoch(epoch) for epoch in epochs])
        offset = epochs.start * self._num_samples
        return row[places.start - offset : places.stop - offset]

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(self._num_samples)
        if self._weights is None:
            return order
        return rng.permutation(order[_drawn(self._weights[order], np.arange(self._num_samples) + rng.random())])


@dataclass(frozen=True)
class _Epoch:
    """The order of blocks in an epoch, and how it is cut into windows: numbers of blocks and places where they begin."""

    blocks: np.ndarray
    cuts: np.ndarray
    starts: np.ndarray
    masses: np.ndarray
    """Sums of weights before each window."""
    shift: float


class WindowedOrder:
    """As `SampleOrder`, where memory holds but a window of the samples at a time: a permutation in two steps.

    An epoch puts the blocks in a random order, cuts it into windows of about `windows.samples` samples, all of about
    the same size, and permutes the samples within each. So each sample is as likely at any place as at another. Of two
    neighbours 1 / (blocks of a window) come from the same block, where in a permutation of all samples
    1 / (all blocks) do; those from different blocks are as far apart in the store as in that.

    With `weights`, each sample stands in an epoch as often as by `SampleOrder`, all its places in one window.
    """

    def __init__(self, seed: int, windows: Windows, weights: Weights | None = None):
        self._seed, self._blocks, self._weights = seed, windows.blocks, weights
        self._ends = np.cumsum(windows.blocks)
        self._num_samples = int(self._ends[-1])
        self._count = -(-self._num_samples // windows.samples)
        self._masses = windows.blocks.astype(np.float64)
        if weights is not None:
            starts = self._ends - windows.blocks
            ranges = zip(starts.tolist(), self._ends.tolist(), strict=True)
            self._masses = np.array([weights[start:end].sum() for start, end in ranges])
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)
        self._window = functools.lru_cache(maxsize=2)(self._draw_window)

    def indices(self, places: range) -> np.ndarray:
        """int64 indices of the samples at `places`."""
        found, place = [], places.start
        while place < places.stop:
            epoch, within = divmod(place, self._num_samples)
            starts = self._epoch(epoch).starts
            window = int(np.searchsorted(starts, within, side="right")) - 1
            first, end = within - int(starts[window]), int(starts[window + 1] - starts[window])
            found.append(self._window(epoch, window)[first : min(end, first + places.stop - place)])
            place += len(found[-1])
        return np.concatenate(found)

    def _draw_epoch(self, epoch: int) -> _Epoch:
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._blocks))
        sizes = self._num_samples * np.arange(1, self._count) / self._count
        inner = np.searchsorted(np.cumsum(self._blocks[order]), sizes) + 1
        cuts = np.concatenate([[0], inner, [len(order)]])
        masses = np.concatenate([[0.0], np.cumsum(self._masses[order])])[cuts]
        shift = rng.random() if self._weights is not None else 0.0
        # Points n + shift for each place n: the window that a point falls on has its place.
        starts = np.clip(np.ceil(masses - shift), 0, self._num_samples).astype(np.int64)
        starts[-1] = self._num_samples  # rounding must not leave the last point behind all windows
        return _Epoch(order, cuts, starts, masses, shift)

    def _draw_window(self, epoch: int, window: int) -> np.ndarray:
        # A seed ends in a number above 0: (s, e) and (s, e, 0) are one to numpy.
        rng, line = np.random.default_rng((self._seed, epoch, 1 + window)), self._epoch(epoch)
        blocks = line.blocks[line.cuts[window] : line.cuts[window + 1]]
        rows = [
            np.arange(end - self._blocks[block], end) for block, end in zip(blocks, self._ends[blocks], strict=True)
        ]
        if self._weights is None:
            return rng.permutation(np.concatenate(rows))
        weights = np.concatenate([self._weights[int(block[0]) : int(block[-1]) + 1] for block in rows if len(block)])
        points = np.arange(line.starts[window], line.starts[window + 1]) + line.shift - line.masses[window]
        return rng.permutation(np.concatenate(rows)[_drawn(weights, points)])


def _drawn(weights: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The samples on which points fall, where each takes as much room as its weight."""
    ends = np.cumsum(weights)
    ends[-1] = np.inf  # rounding must not leave the last point behind all samples
    return np.searchsorted(ends, points, side="right")


def sample_order(
    seed: int, num_samples: int, windows: Windows | None, weights: Weights | None
) -> SampleOrder | WindowedOrder:
    """The order of a run: of `windows` where not all samples are held at once, else a permutation of all of them."""
    if windows is not None:
        return WindowedOrder(seed, windows, weights)
    return SampleOrder(seed, num_samples, None if weights is None else weights[:])
