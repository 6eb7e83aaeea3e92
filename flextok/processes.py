"""Pools of worker processes that start fast, leave the interrupts to their parent, and never outlive it."""

import contextlib
import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait as wait_for
from typing import Any


@contextlib.contextmanager
def process_pool(
    workers: int, initialize: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """An executor of `workers` processes, each made ready by `initialize(*arguments)`; all are ended with the block.

    They are spawned: a fork would copy the locks of Arrow's, Polars' and torch's threads in whatever state they are.
    Functions sent to them must come from a module that can be imported, not from the program's main file.
    """
    pool = ProcessPoolExecutor(
        workers, mp_context=_SpawnWithoutMain(), initializer=_start_worker, initargs=(initialize, arguments)
    )
    try:
        yield pool
    finally:
        for process in list((pool._processes or {}).values()):  # one in the middle of its work need not finish it
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


class _ProcessWithoutMain(multiprocessing.context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        """Starts it while the main module looks like one without a file.

        Otherwise each worker would import the program's main module first: all of the command line, or all of Ray.
        """
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            return multiprocessing.context.SpawnProcess._Popen(process_obj)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            sys.modules["__main__"] = main


class _SpawnWithoutMain(multiprocessing.context.SpawnContext):
    Process = _ProcessWithoutMain


def _start_worker(initialize: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    initialize(*arguments)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)
