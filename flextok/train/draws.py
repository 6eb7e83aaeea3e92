"""Which samples a step sees and which random numbers it draws: both follow from the seed and the place alone.

Place n counts every sample of the run: step s of global batch B covers places s*B .. (s+1)*B - 1, however many
workers share them. So a run goes on exactly after a kill, and one or many workers see the same numbers.
"""

import functools
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from flextok.digests import digest_of
from flextok.model.streams import normal_for, uniform_for


def sample_indices(seed: int, num_samples: int, places: range) -> np.ndarray:
    """The sample at each place: int64 indices from an endless row of permutations of `num_samples`."""
    epochs = range(places.start // num_samples, (places.stop - 1) // num_samples + 1)
    row = np.concatenate([_permutation(seed, num_samples, epoch) for epoch in epochs])
    offset = epochs.start * num_samples
    return row[places.start - offset : places.stop - offset]


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, num_samples: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


class Draws:
    """Random numbers for a batch, one stream for each sample and purpose."""

    def __init__(self, seed: int, places: Sequence[int]):
        self.seed, self.places = seed, places

    def __len__(self) -> int:
        return len(self.places)

    def uniform(self, purpose: str) -> Tensor:
        """[B] in [0, 1)."""
        return uniform_for(_purpose_seed(self.seed, purpose), self.places, ())

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """[B, *shape], standard normal."""
        return normal_for(_purpose_seed(self.seed, purpose), self.places, tuple(shape))


@functools.lru_cache(maxsize=64)
def _purpose_seed(seed: int, purpose: str) -> int:
    return int(digest_of([seed, purpose])[:8], 16)
