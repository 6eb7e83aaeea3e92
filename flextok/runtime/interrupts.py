"""Who owns SIGINT, SIGTERM and SIGHUP: this module, for every command and every stage.

Others want them too. Dagster holds them back while it keeps its records, Ray ends the process from within a callback, Ray
Train answers only to SIGINT, and Python drops an exception that a handler raises in a finalizer or an import lock. So a
signal is remembered where `owned` stands, handlers that others install meanwhile are not, and

- it raises KeyboardInterrupt at once, unless the block is `held`: then when that ends, or at the next `check`. No other
  kind: Ray's calls into C++ drop whatever else a handler raises, and wait on;
- what Python dropped is raised again at the next `check`, which is at each count of a progress bar;
- a process that is still there `GRACE_S` after the signal is ended, whatever it waits for.

Signals that are ignored when a process starts (`nohup`, `&` in a script) stay ignored.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 8.0
INTERRUPTED = "interrupted"
RESUMES = "what was finished is kept; the same command, or `flextok refresh`, resumes from there"


def _nothing() -> None:
    """Nobody owns the signals."""


class _Owner:
    """The state of the process: which signal came, and whether it raises at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.owns = False
        self.held = False
        self.take: Callable[[], None] = _nothing
        self.reason = INTERRUPTED
        self.resume_hint = RESUMES


_owner = _Owner()


@contextlib.contextmanager
def owned(last_words: Callable[[], None] | None = None) -> Iterator[None]:
    """While the block runs, a signal raises KeyboardInterrupt in it; outside the main thread nothing changes.

    Inside another `owned` block it is no longer `held`. `last_words` is called before a process that does not end by
    itself is ended with code 1.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _owner.owns:
        with _as(held=False):
            yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    install = signal.signal

    def install_others(number: int, handler: Any) -> Any:
        """`signal.signal` for everybody else: our signals stay ours."""
        return signal.getsignal(number) if number in taken else install(number, handler)

    def take() -> None:
        for number in taken:
            install(number, _handle)

    watch = _Watch(last_words)
    take()
    signal.signal, _owner.take = install_others, take
    _owner.owns = True
    try:
        with _as(held=False):
            yield
    finally:
        _owner.owns = False
        signal.signal, _owner.take = install, _nothing
        for number in taken:
            install(number, before[number])
        watch.end()
        _owner.received, _owner.reason = None, INTERRUPTED


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A block that is not interrupted in the middle: a signal waits for its end, or for a `check` or `owned` inside."""
    if not _owner.owns or not _in_main_thread():
        yield
        return
    with closing():
        yield
    check()


@contextlib.contextmanager
def closing() -> Iterator[None]:
    """A last block, which no signal interrupts any more; the watch still ends a process that hangs in it."""
    if not _owner.owns or not _in_main_thread():
        yield
        return
    with _as(held=True):
        yield


def check() -> None:
    """Raises KeyboardInterrupt if a signal has come. Does nothing outside the main thread."""
    if pending() and _owner.owns and _in_main_thread():
        raise KeyboardInterrupt


def take_again() -> None:
    """Take the signals back from a library that set its handlers below Python, as Ray's core does when it starts."""
    if _in_main_thread():
        _owner.take()


def pending() -> bool:
    """Whether a signal has come."""
    return _owner.received is not None


def stop(reason: str) -> None:
    """End the work in hand as SIGTERM does, from any thread; the last line begins with the reason."""
    if _owner.owns and not pending():
        _owner.reason = reason
        os.kill(os.getpid(), signal.SIGTERM)


def resumes(hint: str) -> None:
    """Record from where the work at hand is resumed, for the line that an interrupted command ends with."""
    _owner.resume_hint = hint


def interrupted_line() -> str:
    """What an interrupted command says at its end."""
    return f"{_owner.reason}; {_owner.resume_hint}"


@contextlib.contextmanager
def _as(held: bool) -> Iterator[None]:
    before, _owner.held = _owner.held, held
    try:
        if not held:
            check()
        yield
    finally:
        _owner.held = before


def _handle(number: int, frame: FrameType | None) -> None:
    _owner.received = signal.Signals(number)
    if not _owner.held:
        check()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class _Watch:
    """A thread that learns of each signal from the kernel's side, also while Python's handlers cannot run."""

    def __init__(self, last_words: Callable[[], None] | None):
        self._last_words = last_words
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self._reading, True)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Watch no longer."""
        signal.set_wakeup_fd(self._before)
        self._ended.set()
        os.close(self._writing)

    def _run(self) -> None:
        numbers = {int(number) for number in SIGNALS}
        while content := os.read(self._reading, 64):
            if numbers & set(content):
                if not self._ended.wait(GRACE_S):
                    self._force()
                break
        os.close(self._reading)

    def _force(self) -> None:
        if self._last_words is not None:
            self._last_words()
        sys.stderr.flush()
        os._exit(1)
