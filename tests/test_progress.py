import signal
import sys
import threading

import pytest

from flextok.runtime.interrupts import SIGNALS
from flextok.runtime.progress import track


class InterruptsWhenFreed:
    """Gets the signal in a place whose exceptions Python drops."""

    def __init__(self, number: signal.Signals):
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.fixture
def raising_handlers():
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    yield interrupt
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_that_python_drops_is_raised_at_the_next_count(number, raising_handlers, monkeypatch):
    dropped: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: dropped.append(unraisable.exc_type))
    with pytest.raises(KeyboardInterrupt), track("work", 3, "steps") as task:
        task.advance()
        InterruptsWhenFreed(number)
        assert dropped == [KeyboardInterrupt]
        task.advance()
    assert all(signal.getsignal(each) is raising_handlers for each in SIGNALS)


def test_counting_in_a_thread_leaves_signals_alone(raising_handlers):
    done: list[int] = []

    def work() -> None:
        with track("work", 2, "steps") as task:
            task.advance(2)
            done.append(task.done)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [2]
