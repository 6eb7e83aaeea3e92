import signal
import sys
import threading

import pytest

from flextok.runtime import interrupts
from flextok.runtime.interrupts import SIGNALS
from flextok.runtime.progress import track


class InterruptsWhenFreed:
    """Gets the signal in a place whose exceptions Python drops."""

    def __init__(self, number: signal.Signals):
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_that_python_drops_is_raised_at_the_next_count(number, monkeypatch):
    before = [signal.getsignal(each) for each in SIGNALS]
    dropped: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: dropped.append(unraisable.exc_type))
    with pytest.raises(KeyboardInterrupt), interrupts.owned(), track("work", 3, "steps") as task:
        task.advance()
        InterruptsWhenFreed(number)
        assert dropped == [KeyboardInterrupt]
        task.advance()
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_counting_in_a_thread_leaves_signals_alone():
    done: list[int] = []

    def work() -> None:
        with interrupts.owned(), track("work", 2, "steps") as task:
            task.advance(2)
            done.append(task.done)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [2]
    assert signal.getsignal(signal.SIGINT) is before
