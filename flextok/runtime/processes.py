"""Pools of worker processes that start fast, leave the interrupts to their parent, and never outlive it.

Made of the standard library's executor. loky 3.7 was tried in its place: it does not import the program's main module
either, but when its parent was killed (SIGKILL), its workers, idle or busy, were there 20 s later, and with them the memory
and the files that they had open. With a watch of our own on the parent it would save no line here.
"""

import contextlib
import multiprocessing
import multiprocessing.context
import multiprocessing.util
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait as wait_for
from typing import Any

from flextok.runtime.memory import keep_freed_memory


def start_processes(workers: int, initialize: Callable[..., None], arguments: tuple[Any, ...]) -> ProcessPoolExecutor:
    """An executor of `workers` processes, each made ready by `initialize(*arguments)`; end it with `end_processes`.

    They are spawned: a fork would copy the locks of Arrow's, Polars' and torch's threads in whatever state they are.
    Functions sent to them must come from a module that can be imported, not from the program's main file.
    """
    return ProcessPoolExecutor(
        workers, mp_context=_SpawnWithoutMain(), initializer=_start_worker, initargs=(initialize, arguments)
    )


def end_processes(pool: ProcessPoolExecutor) -> None:
    """End the pool's processes now; one in the middle of its work need not finish it."""
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def release_semaphores() -> None:
    """Do with the semaphores of all pools what a usual end of Python does, for a process that is about to `os._exit`.

    Otherwise multiprocessing's tracker warns of those that an interrupted pool still had, after the command's last line.
    """
    multiprocessing.util._run_finalizers(0)  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def process_pool(
    workers: int, initialize: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """`start_processes` for the block."""
    pool = start_processes(workers, initialize, arguments)
    try:
        yield pool
    finally:
        end_processes(pool)


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
    keep_freed_memory()
    initialize(*arguments)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)
