"""The group of processes that train one model, as one of its members sees it, and how the model is spread over it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

CPU = torch.device("cpu")


@dataclass(frozen=True)
class DistContext:
    """This process's place among `size`, and the device it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @classmethod
    def joined(cls, use_gpu: bool) -> "DistContext":
        """This process's place in the process group that was set up (by Ray Train or torchrun), else a world of one."""
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_gpu else CPU
        if not dist.is_initialized():
            return cls(device=device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Whether this member is the one that writes."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This member's contiguous share of `count` things; all shares together are all of them."""
        return shares(count, self.size)[self.rank]

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all members, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_first(self, tensor: Tensor) -> Tensor:
        """`tensor` overwritten with that of the first member, in place."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor


def shares(count: int, size: int) -> list[slice]:
    """`count` things in `size` contiguous shares, as equal as they can be."""
    return [slice(count * rank // size, count * (rank + 1) // size) for rank in range(size)]


def wrap(module: nn.Module, world: DistContext) -> nn.Module:
    """`module` to call in its place: gradients of what it gives back are means over all members.

    Buffers are left to `buffers.LearnedBuffers`: those of frozen parts are equal from the start.
    """
    if world.size == 1:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True, forward_sync_buffers=False)


@contextlib.contextmanager
def adding_up(module: nn.Module, is_last: bool) -> Iterator[None]:
    """Around forward and backward pass of one of several slices of a batch: members exchange gradients in the last."""
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not is_last else contextlib.nullcontext():
        yield
