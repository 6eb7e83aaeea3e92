"""How much of a codebook is in use while a tokenizer is trained, at some of the positions."""

import torch
from torch import Tensor

from flextok.train.buckets import keep_ends
from flextok.train.parallel import DistContext

MOST_COUNTED_IDS = 1 << 22
"""Largest vocabulary whose usage is measured: a run sees no fair part of more ids, and each takes a number here."""


class IdsByPosition:
    """Counts of ids at the positions 1, 2, 4, ... and the last, each with its codebooks; of none where they would be too many."""

    def __init__(self, registers: int, codebooks: int, vocab_size: int, device: torch.device):
        self._positions, self._codebooks, self._vocab_size = keep_ends(registers)[1:], codebooks, vocab_size
        rows = len(self._positions) * codebooks
        self._counts = torch.zeros(
            rows * vocab_size if rows * vocab_size <= MOST_COUNTED_IDS else 0, dtype=torch.int64, device=device
        )
        self._index = torch.tensor(self._positions, device=device) - 1
        self._offsets = torch.arange(rows, device=device) * vocab_size

    def add(self, ids: Tensor) -> None:
        """Ids [B,L] or [B,L,C]."""
        if len(self._counts):
            found = (ids[:, self._index].flatten(1) + self._offsets).flatten()
            self._counts.index_add_(0, found, torch.ones_like(found))

    def entropies(self, world: DistContext) -> dict[str, float]:
        """`train/entropy_by_position/<position>` in bits since the last call, of an id: the mean over its codebooks.

        Of n images it is log2(n) at most. All members call it.
        """
        if not len(self._counts):
            return {}
        counts = world.sum(self._counts).double().view(len(self._positions), self._codebooks, self._vocab_size)
        shares = counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)
        bits = (torch.special.entr(shares).sum(dim=-1) / torch.log(torch.tensor(2.0))).mean(dim=1).tolist()
        self._counts.zero_()
        return {
            f"train/entropy_by_position/{position}": value
            for position, value in zip(self._positions, bits, strict=True)
        }
