"""The memory of a process: how one that works on pictures keeps what it frees, and how much it took at most."""

import contextlib
import ctypes
import re
import resource
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""Environment of a process in which `keep_freed_memory(large=True)` holds for threads too: glibc's other heaps end at
64 MiB, and what is larger comes from the kernel each time."""


def keep_freed_memory(large: bool = False) -> None:
    """Let this process reuse the memory that it frees, where glibc would hand it back to the kernel (mallopt(3)).

    Pictures come and go by the megabyte; fetching their pages anew each time was measured to cost a tenth of all work.
    With `large` what is above 32 MiB is kept too, as the activations of a large model are, which on a CPU lost a third of
    their time so; the process then stays as large as it once was. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, -1 if large else 512 * 2**20)
        if large:
            libc.mallopt(M_MMAP_MAX, 0)


def peak_memory() -> int:
    """The most bytes that this process had in memory. Elsewhere than on Linux it may be its parent's, if that had more."""
    with contextlib.suppress(OSError):
        # getrusage would begin with the peak of the process that started this one.
        if found := re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
