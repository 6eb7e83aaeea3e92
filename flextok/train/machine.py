"""What a training takes of its machines: speed, waiting for data, memory, share of the peak, hours."""

import resource
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from flextok.train.parallel import DistContext
from flextok.train.peak import peak_flops

T = TypeVar("T")
GIB = 2**30
SECONDS_PER_HOUR = 3600
DEVICE_HOURS = "machine/device_hours"


class Machine:
    """Clocks of one member of a training. All of it is read from the host: nothing waits for the device."""

    def __init__(self, world: DistContext, dtype: torch.dtype | None):
        self._world, self._dtype = world, dtype or torch.float32
        self._hours = 0.0
        self.begin(0.0)

    def begin(self, hours: float) -> None:
        """Start the clocks, after so many hours of all devices in earlier attempts."""
        self._hours, self._waited = hours, 0.0
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the last row."""
        return time.monotonic() - self._since

    def waited_for(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches`, counting the time that each is waited for."""
        coming = iter(batches)
        while True:
            began = time.monotonic()
            try:
                batch = next(coming)
            except StopIteration:
                return
            finally:
                self._waited += time.monotonic() - began
            yield batch

    def row(self, samples: int, flops: float | None) -> dict[str, float]:
        """What was since the last row, in which all members together trained on `samples`, each of so many operations.

        `train/images_per_s`; `machine/data_wait`, the part of the time spent waiting for batches; `machine/memory_gib`, of
        a GPU the most that was allocated, else the most that this process ever took; `machine/mfu`, the part of the peak
        of all devices, where the peak and the operations are known; `machine/device_hours`, from the start.
        """
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        self._hours += seconds * self._world.size / SECONDS_PER_HOUR
        values = {
            "train/images_per_s": samples / seconds,
            "machine/data_wait": self._waited / seconds,
            "machine/memory_gib": self._memory() / GIB,
            DEVICE_HOURS: self._hours,
        }
        peak = peak_flops(self._world.device, self._dtype) if flops else None
        if flops and peak:
            values["machine/mfu"] = samples / seconds * flops / (peak * self._world.size)
        self._waited, self._since = 0.0, now
        return values

    def _memory(self) -> int:
        if self._world.device.type != "cuda":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        most = torch.cuda.max_memory_allocated(self._world.device)
        torch.cuda.reset_peak_memory_stats(self._world.device)
        return most
