"""Ctrl-C and SIGTERM that cannot get lost.

Python drops an exception that a signal handler raises inside a callback, such as that of an import lock or a finalizer
(`Exception ignored in ...`), and the process would work on. So the signal is remembered, and handled once more at the
next safe place.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def remembered() -> Iterator[Callable[[], None]]:
    """While the block runs, remembers signals; the function given handles a remembered one again.

    That function does nothing outside the main thread, where Python handles signals. Handlers are as before afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _nothing
        return
    received: list[signal.Signals] = []
    handlers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        handlers[received[-1]](number, frame)

    def handle_again() -> None:
        if received and threading.current_thread() is threading.main_thread():
            handlers[received[-1]](received[-1], None)

    for number in handlers:
        signal.signal(number, remember)
    try:
        yield handle_again
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _nothing() -> None:
    """Signals are not handled in this thread."""
