"""Processes that do not outlive this one, however it ends: a command's whole group, or some by their numbers."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

PATIENCE_S = 7.0  # a training writes its state meanwhile (launch.STOP_S); within interrupts.GRACE_S
POLL_S = 0.05
# A process that was started with `&` or `nohup` ignores signals, and its children would do so too.
USUAL_SIGNALS = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
# What ends others when this process is gone: its standard input ends then, as the kernel closes the other side.
IGNORES_SIGNALS = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
"""
ENDS_GROUP = f"""
sys.stdin.buffer.read()
for number in (signal.SIGTERM, signal.SIGKILL):
    until = time.monotonic() + {PATIENCE_S}
    try:
        os.killpg(int(sys.argv[1]), number)
        while time.monotonic() < until:
            os.killpg(int(sys.argv[1]), 0)
            time.sleep({POLL_S})
    except ProcessLookupError:
        break
"""
# By descriptors, where the system has them: a number may be another's by then. And what was started for them since, with the
# mark among its arguments: it may be too young to see that they are gone.
ENDS_PROCESSES = """
mark = os.fsencode(sys.argv[1])
family = []
for pid in sys.argv[2:]:
    try:
        family.append(os.pidfd_open(int(pid)))
    except ProcessLookupError:
        pass
sys.stdin.buffer.read()
for process in family:
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        pass
for pid in filter(str.isdecimal, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            marked = mark in file.read()
        if marked and int(pid) != os.getpid():
            os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""
PYTHON = [sys.executable, "-I", "-S", "-c"]


def start_reaper(pids: Sequence[int], mark: str) -> "subprocess.Popen[bytes]":
    """A process that ends those with `pids`, and all that have `mark` among their arguments, when this one is gone, however
    it ends, or when its `communicate` is called.

    On a system without descriptors of processes it ends at once and does nothing.
    """
    return _start_watching(ENDS_PROCESSES if hasattr(os, "pidfd_open") else "", [mark, *map(str, pids)])


def _start_watching(program: str, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    command = [*PYTHON, IGNORES_SIGNALS + program, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


_apart = False


def _lead_own_group() -> None:
    if _apart:
        os.setpgid(0, 0)


# Python calls it for a child with a `preexec_fn`, as Ray's are, and for no other that `subprocess` starts.
os.register_at_fork(after_in_child=_lead_own_group)


@contextlib.contextmanager
def children_apart() -> Iterator[None]:
    """Each process that Ray starts in the block leads a group of its own, which no signal to the group of this one reaches.

    Else SIGTERM to the whole group, as a supervisor or `timeout` sends it, ends Ray while a training writes its state.
    """
    global _apart
    _apart = True
    try:
        yield
    finally:
        _apart = False


@contextlib.contextmanager
def process_group(command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`command` as the leader of a new group, with the usual handling of signals; the whole group ends with the block.

    All of it gets SIGTERM at once, for a leader that waits for its own would use up the time that they have; what is
    left of it after 7 s is ended.
    """
    process = subprocess.Popen([*PYTHON, USUAL_SIGNALS, *command], env=environment, start_new_session=True)
    with _start_watching(ENDS_GROUP, [str(process.pid)]) as watching:
        try:
            yield process
        finally:
            _end_group(process)
            watching.kill()


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            leader.poll()
            os.killpg(leader.pid, 0)
            time.sleep(POLL_S)
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()
