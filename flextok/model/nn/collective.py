"""Sums over all samples of a batch: those of the processes that train one model together, and of its slices in each."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def summed(tensor: Tensor) -> Tensor:
    """`tensor` summed over the processes that train together, each of which must call it; as it is where there is one.

    For statistics of a batch that a forward pass puts into buffers (counts and sums of an EMA codebook): those of the
    whole batch are then the same on every process, whatever its part. Where a batch goes through in slices, the last one
    gets the sum over all of them (see `SlicedSums`). Not differentiable.
    """
    if SlicedSums.open is not None:
        tensor = SlicedSums.open.added(tensor)
        if not SlicedSums.open.is_last:
            return tensor
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


class SlicedSums:
    """What `summed` gives while a batch goes through a model in slices: the sum of those so far, of all in the last.

    Each slice is a forward pass of its own, which calls `summed` equally often and in the same order.
    """

    open: "SlicedSums | None" = None

    def __init__(self) -> None:
        self.is_last = False
        self._totals: list[Tensor] = []
        self._calls = 0

    @property
    def is_used(self) -> bool:
        """Whether any slice has called `summed`."""
        return bool(self._totals)

    @contextlib.contextmanager
    def slice(self, is_last: bool) -> Iterator[None]:
        """Around the forward pass of the next slice."""
        self.is_last, self._calls = is_last, 0
        SlicedSums.open = self
        try:
            yield
        finally:
            SlicedSums.open = None

    def added(self, tensor: Tensor) -> Tensor:
        """`tensor` added to what the same call got in the slices before."""
        if self._calls == len(self._totals):
            self._totals.append(torch.zeros_like(tensor))
        total = self._totals[self._calls] + tensor
        self._totals[self._calls] = total
        self._calls += 1
        return total
