"""The group of processes that train one model, as one of its members sees it."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from flextok.errors import UsageError

CPU = torch.device("cpu")
BFLOAT16_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class World:
    """This process's place among `size`, and the device it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @classmethod
    def joined(cls, use_gpu: bool) -> "World":
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
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

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


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 or None (float32) for "auto", "float32" or "bfloat16" on `device`."""
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
        return torch.bfloat16 if native else None
    if precision not in ("float32", "bfloat16"):
        raise UsageError(f"expected precision auto, float32 or bfloat16, found {precision!r}")
    return torch.bfloat16 if precision == "bfloat16" else None


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; where it does not, bfloat16 is slower than float32."""
    if sys.platform != "linux":
        return False
    return not BFLOAT16_CPU_FLAGS.isdisjoint(Path("/proc/cpuinfo").read_text().split())
