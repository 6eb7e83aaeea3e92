"""Dropout whose masks are drawn for the whole batch of a step: the same for any number of processes and slices that share it."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """nn.Dropout of [B,...]; where a process has some rows of a batch (see `BatchRows`), theirs of the mask for all rows.

    It costs the numbers of the other rows' masks. A module of the usual kind would give the same mask to each process.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`input` [B,...] with elements dropped, and scaled, in training."""
        rows = BatchRows.open
        if not self.training or self.p == 0 or rows is None or len(input) == rows.count:
            return super().forward(input)
        mask = F.dropout(input.new_ones(rows.count, *input.shape[1:]), self.p, training=True)
        return input * mask[rows.start : rows.start + len(input)]


class BatchRows:
    """Which rows of a step's batch go through a model now."""

    open: "BatchRows | None" = None

    def __init__(self, start: int, count: int):
        self.start, self.count = start, count

    @classmethod
    @contextlib.contextmanager
    def of_step(cls, start: int, count: int, seed: int) -> Iterator[None]:
        """Around forward and backward pass of the rows from `start` on, of `count`; draws of torch begin anew by `seed`."""
        torch.manual_seed(seed)
        cls.open = cls(start, count)
        try:
            yield
        finally:
            cls.open = None
