"""What decodes ahead of the model: threads, or processes of their own, which read what they decode.

Light to import: processes start fast.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, Self, TypeVar

from flextok.runtime.processes import ProcessPool

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
        self._pool.end()

    def submit(self, function: Callable[..., T], /, *arguments: Any) -> Future[T]:
        """The function's result, some time; raises BrokenProcessPool when new processes end at once too."""
        with self._lock:
            try:
                return self._pool.submit(function, *arguments)
            except BrokenProcessPool:
                self._pool.end()
                self._pool = self._start()
                return self._pool.submit(function, *arguments)

    def _start(self) -> ProcessPool:
        return ProcessPool(self.count, _step_back, at_once=2)


def _step_back() -> None:
    """Where cores are shared the model goes first: decoders work ahead of it and wait for it in the end."""
    os.nice(NICENESS)
    import flextok.data.corpus.crops  # noqa: F401  # pyright: ignore[reportUnusedImport] - before there is a picture
