"""Pools of worker processes that start fast, leave the interrupts to their parent, and never outlive it.

Each process has pipes of its own. Those of the standard library's executor, and of loky 3.7, answer through one pipe: of a
process that is killed while it answers, half an answer is left there, and the reader waits for the rest for ever, as do
shutdown and all calls (answers of 300 kB: 7 of 8 pools hung, loky's 3 of 5). A pipe of its own ends with its process.
"""

import contextlib
import multiprocessing
import multiprocessing.context
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
import types
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, Self, TypeVar

from flextok.runtime import interrupts
from flextok.runtime.memory import keep_freed_memory

T = TypeVar("T")


class ProcessPool:
    """`workers` processes, each made ready by `initialize(*arguments)`, which make the calls that are submitted.

    They start at once. Each is given `at_once` calls: with two, the next one waits in the process, and no time is lost
    between them; with one, no call waits behind a long one while another process is idle. As a context it ends them.

    They are spawned: a fork would copy the locks of Arrow's, Polars' and torch's threads in whatever state they are.
    Functions sent to them must come from a module that can be imported, not from the program's main file.
    """

    def __init__(
        self, workers: int, initialize: Callable[..., object], arguments: tuple[Any, ...] = (), at_once: int = 1
    ):
        self._at_once = at_once
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Any], bytes]] = deque()
        self._broken = False
        self._workers: list[_Worker] = []
        try:
            with interrupts.held():  # a process that is cut off in its start says so in many lines
                for _ in range(workers):
                    self._workers.append(_Worker(initialize, arguments))
        except BaseException:
            self._kill()
            raise
        self._thread = threading.Thread(target=self._collect, name="processes", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [worker.process.pid or 0 for worker in self._workers]

    def submit(self, function: Callable[..., T], /, *arguments: Any) -> Future[T]:
        """The result of `function(*arguments)`, some time, or what it raised.

        When a process is lost (killed, or crashed), all calls that have not ended raise BrokenProcessPool, the other
        processes are ended, and so are later calls refused.
        """
        future: Future[T] = Future()
        call = pickle.dumps((function, arguments))
        with self._lock:
            if self._broken:
                raise BrokenProcessPool("a process of this pool was lost, or it was ended")
            self._waiting.append((future, call))
            self._give_out()
        return future

    def end(self) -> None:
        """End the processes now; one in the middle of its work need not finish it."""
        self._kill()
        self._thread.join()

    def _give_out(self) -> None:
        """Send what waits to the processes with the fewest calls; the lock is held."""
        while self._waiting and len((worker := min(self._workers, key=_load)).calls) < self._at_once:
            future, call = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                worker.calls.append(future)
                with contextlib.suppress(OSError):  # a process that is gone is found to be so by `_collect`
                    worker.tasks.send_bytes(call)

    def _collect(self) -> None:
        """Take results as they come, until a process ends."""
        of = {worker.results: worker for worker in self._workers}
        try:
            while True:
                for ready in wait(list(of)):
                    self._take(of[ready])  # pyright: ignore[reportArgumentType]
        except (EOFError, OSError):
            self._break()

    def _take(self, worker: "_Worker") -> None:
        """Raises EOFError or OSError where the process has ended."""
        reply = worker.results.recv_bytes()
        with self._lock:
            future = worker.calls.popleft()
            self._give_out()
        settle(future, *opened(reply))

    def _break(self) -> None:
        with self._lock:
            self._broken = True
            waiting = [future for future, _ in self._waiting if future.set_running_or_notify_cancel()]
            lost = [*(future for worker in self._workers for future in worker.calls), *waiting]
            self._waiting.clear()
        self._kill()
        for worker in self._workers:
            worker.close()
        for future in lost:
            future.set_exception(BrokenProcessPool("a worker process ended before its call did"))

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()


class _Worker:
    """A process with the two ends of its pipes that are here, and the calls that it has, the one at work first."""

    def __init__(self, initialize: Callable[..., object], arguments: tuple[Any, ...]):
        theirs, self.tasks = multiprocessing.Pipe(duplex=False)
        self.results, answers = multiprocessing.Pipe(duplex=False)
        self.calls: deque[Future[Any]] = deque()
        # At the end of Python multiprocessing waits for all but daemons.
        self.process = _ProcessWithoutMain(target=_work, args=(theirs, answers, initialize, arguments), daemon=True)
        self.process.start()
        theirs.close()
        answers.close()  # else the end of the process would not be the end of its pipe

    def close(self) -> None:
        """After the process was killed."""
        self.process.join()
        self.tasks.close()
        self.results.close()


def opened(reply: bytes) -> tuple[bool, Any]:
    """What `answer` replied."""
    try:
        return pickle.loads(reply)
    except Exception as error:  # noqa: BLE001 - it belongs to the call
        return False, error


def settle(future: Future[Any], succeeded: bool, value: Any) -> None:
    """Give `future` a result or an exception."""
    if succeeded:
        future.set_result(value)
    else:
        future.set_exception(value)


def _load(worker: _Worker) -> int:
    return len(worker.calls)


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


def _work(
    tasks: Connection, results: Connection, initialize: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(tasks, calls), daemon=True).start()
    keep_freed_memory()
    initialize(*arguments)
    while True:
        reply = answer(calls.get())
        try:
            results.send_bytes(reply)
        except OSError:
            os._exit(1)


def _receive(tasks: Connection, calls: "queue.SimpleQueue[bytes]") -> NoReturn:
    """Take calls out of the pipe, so that whoever sends them need not wait; end this process with its parent."""
    try:
        while True:
            calls.put(tasks.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


def answer(call: bytes) -> bytes:
    """The pickled (True, result) or (False, exception) of a pickled (function, arguments)."""
    try:
        function, arguments = pickle.loads(call)
        return pickle.dumps((True, function(*arguments)))
    except Exception as error:  # noqa: BLE001 - raised again, to the caller
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        try:
            return pickle.dumps((False, error))
        except Exception:  # noqa: BLE001 - an exception that cannot travel
            return pickle.dumps((False, RuntimeError(traceback.format_exc())))
