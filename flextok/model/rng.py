"""Random numbers of a sample: decided by a seed and the sample's id alone, whatever batch it stands in."""

import functools
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from flextok.digests import digest_of

Seed = int | Sequence[int]
"""Of all samples, or one for each."""


def normal_for(seed: Seed, sample_ids: Sequence[int | str], shape: Sequence[int]) -> Tensor:
    """Standard normal draws [len(sample_ids), *shape], float32 on the CPU (the same on every machine with one)."""
    draws = torch.empty(len(sample_ids), *shape)
    for row, own_seed, sample_id in zip(draws, _seeds(seed, len(draws)), sample_ids, strict=True):
        torch.randn(row.shape, generator=generator_for(own_seed, sample_id), out=row)
    return draws


def uniform_for(seed: Seed, sample_ids: Sequence[int | str], shape: Sequence[int]) -> Tensor:
    """Uniform draws in [0,1), [len(sample_ids), *shape], float32 on the CPU."""
    draws = torch.empty(len(sample_ids), *shape)
    for row, own_seed, sample_id in zip(draws, _seeds(seed, len(draws)), sample_ids, strict=True):
        torch.rand(row.shape, generator=generator_for(own_seed, sample_id), out=row)
    return draws


def _seeds(seed: Seed, count: int) -> Sequence[int]:
    return [seed] * count if isinstance(seed, int) else seed


def generator_for(seed: int, sample_id: int | str) -> torch.Generator:
    """A CPU generator of its own for one sample."""
    digest = hashlib.sha256(f"{seed}/{sample_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class SampleRng:
    """Random numbers for a batch of a training, one stream for each sample and purpose; all of them on the CPU.

    `places` are those of the samples in the run (see `flextok.train.sample_order`).
    """

    def __init__(self, seed: int, places: Sequence[int]):
        self.seed, self.places = seed, places
        self._uniform: dict[str, Tensor] = {}  # what two ask for is drawn once

    def __len__(self) -> int:
        return len(self.places)

    def uniform(self, purpose: str) -> Tensor:
        """[B] in [0, 1)."""
        if purpose not in self._uniform:
            self._uniform[purpose] = uniform_for(_purpose_seed(self.seed, purpose), self.places, ())
        return self._uniform[purpose]

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """[B, *shape], standard normal."""
        return normal_for(_purpose_seed(self.seed, purpose), self.places, tuple(shape))


@functools.lru_cache(maxsize=64)
def _purpose_seed(seed: int, purpose: str) -> int:
    return int(digest_of([seed, purpose])[:8], 16)
