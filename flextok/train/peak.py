"""The most that a device computes: known by its name, or measured by a matrix product."""

import functools
import time

import torch

from flextok.model.nn.precision import cpu_has_bfloat16

KNOWN = {"A100": 312e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12}
"""Dense bfloat16 operations a second by a part of the device's name, as NVIDIA's data sheets have them."""
SIZE, REPEATS = 1024, 3


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Floating-point operations a second of matrix products in `dtype`.

    Of a GPU from its data sheet; None where that is not known, or for another type than bfloat16. Of a CPU the best of
    some products of 1024 x 1024 with the threads of this process, measured once: what was to be had at that moment.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in KNOWN.items() if part in name), None) if dtype == torch.bfloat16 else None
    if device.type != "cpu" or (dtype == torch.bfloat16 and not cpu_has_bfloat16()):
        return None
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=generator).to(dtype) for _ in range(2))
    return 2 * SIZE**3 / min(_seconds(a, b) for _ in range(REPEATS))


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.mm(a, b)
    return time.perf_counter() - began
