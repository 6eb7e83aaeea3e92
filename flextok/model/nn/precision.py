"""Which precision the matrix products take on a device."""

import sys
from pathlib import Path

import torch

from flextok.errors import UsageError

BFLOAT16_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


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
