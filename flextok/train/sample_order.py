"""Which samples a step sees: it follows from the seed and the place alone, as its random numbers do (`SampleRng`).

Place n counts every sample of the run: step s of global batch B covers places s*B .. (s+1)*B - 1, however many
workers share them. So a run resumes exactly after a kill, and one or many workers see the same numbers.
"""

import functools

import numpy as np


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
        ends = np.cumsum(self._weights[order])
        ends[-1] = np.inf  # rounding must not leave the last point behind all samples
        points = np.arange(self._num_samples) + rng.random()
        return rng.permutation(order[np.searchsorted(ends, points, side="right")])
