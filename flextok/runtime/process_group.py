"""A command in a process group of its own, of which nothing outlives this process, however it ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

PATIENCE_S = 5.0
POLL_S = 0.05
# A process that was started with `&` or `nohup` ignores signals, and its children would do so too.
USUAL_SIGNALS = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
# Waits for the end of its standard input, which the kernel closes when the process that holds the other side is gone.
REAPER = f"""
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
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


@contextlib.contextmanager
def process_group(command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`command` as the leader of a new group, with the usual handling of signals; the whole group ends with the block.

    The leader gets SIGINT first and may end its own processes; what is left of the group after 5 s is ended.
    """
    python = [sys.executable, "-I", "-S", "-c"]
    process = subprocess.Popen([*python, USUAL_SIGNALS, *command], env=environment, start_new_session=True)
    reaper = [*python, REAPER, str(process.pid)]
    with subprocess.Popen(reaper, stdin=subprocess.PIPE, start_new_session=True) as watching:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE_S)
            _end_group(process)
            watching.kill()


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
        until = time.monotonic() + PATIENCE_S / 5
        while time.monotonic() < until:
            leader.poll()
            os.killpg(leader.pid, 0)
            time.sleep(POLL_S)
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()
