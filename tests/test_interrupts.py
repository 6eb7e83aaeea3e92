"""Signals are raised where they may be, whatever other libraries install, and a process that hangs ends all the same."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from flextok.runtime import interrupts


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """As in a terminal, whatever started the tests: `nohup` and `&` make a process ignore signals."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in interrupts.SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_handlers_of_others_are_not_installed(number):
    with pytest.raises(KeyboardInterrupt), interrupts.owned():
        signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.raise_signal(number)


def test_other_signals_are_left_to_others():
    with interrupts.owned():
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        signal.signal(signal.SIGUSR1, before)


def test_a_held_block_is_interrupted_at_its_end():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.owned():
        with interrupts.held():
            signal.raise_signal(signal.SIGTERM)
            done.append("whole")
        done.append("never")
    assert done == ["whole"]
    assert not interrupts.pending()


def test_a_block_within_a_held_one_is_interrupted_at_once():
    with pytest.raises(KeyboardInterrupt), interrupts.owned(), interrupts.held():
        with interrupts.owned():
            signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")
    with pytest.raises(KeyboardInterrupt), interrupts.owned(), interrupts.held():
        signal.raise_signal(signal.SIGINT)
        with interrupts.owned():
            pytest.fail("went on")


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interrupts.owned():
        signal.raise_signal(signal.SIGHUP)
        interrupts.check()


HANGS = """
import sys, time
from flextok.runtime import interrupts
interrupts.GRACE_S = 0.5
with interrupts.owned(last_words=lambda: print("last words", file=sys.stderr)):
    while True:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""


def test_a_process_that_swallows_its_interrupt_ends_after_the_grace():
    process = subprocess.Popen([sys.executable, "-c", HANGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert told == "last words\n"
    assert time.monotonic() - sent >= 0.5
