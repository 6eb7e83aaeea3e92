"""What decodes ahead of the model: threads, or processes of their own, which read what they decode.

Light to import: processes start fast.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, Self, TypeVar

from flextok.data.corpus.crops import crop_span
from flextok.runtime.processes import end_processes, start_processes

T = TypeVar("T")

NICENESS = 5


class Decoders(Protocol):
    """What decodes: DecodeThreads or DecodeProcesses."""

    count: int

    def submit(self, function: Callable[..., T], /, *arguments: Any) -> Future[T]:
        """The function's result, some time."""
        ...


class DecodeThreads(ThreadPoolExecutor):
    """Threads that decode in this process: for few pictures, where the start of processes would not pay."""

    def __init__(self, count: int):
        super().__init__(count)
        self.count = count


class DecodeProcesses:
    """Processes that decode beside the model without its Python lock. They start at once, and nobody waits for them.

    When one is lost (killed, or crashed by a picture), what was under way raises BrokenProcessPool, and the next call
    starts new ones.
    """

    def __init__(self, count: int):
        self.count = count
        self._lock = threading.Lock()
        self._pool = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_processes(self._pool)

    def submit(self, function: Callable[..., T], /, *arguments: Any) -> Future[T]:
        """The function's result, some time; raises BrokenProcessPool when new processes end at once too."""
        with self._lock:
            try:
                return self._pool.submit(function, *arguments)
            except BrokenProcessPool:
                end_processes(self._pool)
                self._pool = self._start()
                return self._pool.submit(function, *arguments)

    def _start(self) -> ProcessPoolExecutor:
        pool = start_processes(self.count, _step_back, ())
        for _ in range(self.count):  # each call to a pool that has no idle process starts one
            pool.submit(crop_span, b"", (), 1, ())
        return pool


def _step_back() -> None:
    """Where cores are shared the model goes first: decoders work ahead of it and wait for it in the end."""
    os.nice(NICENESS)
