"""The group of processes that train one model, as one of its members sees it."""

import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
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
        if use_gpu:
            torch.cuda.set_device(device)  # which FSDP takes for this process's own
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

    def shared(self, value: T) -> T:
        """What the first member has for `value`; all members call it."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]


def shares(count: int, size: int) -> list[slice]:
    """`count` things in `size` contiguous shares, as equal as they can be."""
    return [slice(count * rank // size, count * (rank + 1) // size) for rank in range(size)]
