"""`flextok` in a process of its own, for tests that send it signals, and a profile that is trained in seconds."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
LONG = 1_000_000
END_S = 10
# As a terminal starts a command: what runs in the background of a script, or under nohup, ignores some signals.
AS_IN_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
from pipelines.cli import main
main()
"""
IN_THE_BACKGROUND = "from pipelines.cli import main; main()"
SMALL = [
    "corpus.scenes={train_samples: 64, val_samples: 16, image_px: 32}",
    "corpus.shard_samples=16",
    "latents.model={kind: conv, channels: 8, blocks: 1, latent_channels: 4, factor: 4}",
    "latents.train={steps: 4, batch_size: 8}",
    (
        "tokenizer.model={registers: 4, encoder: {width: 32, depth: 1, head_dim: 16},"
        " quantizer: {levels: [4, 4]}, decoder: {trunk: {width: 32, depth: 1, head_dim: 16}}}"
    ),
    "tokenizer.train={steps: 4, batch_size: 8}",
    "prior.model={width: 32, depth: 1, head_dim: 16}",
    "prior.train={steps: 4, batch_size: 8}",
    "compute={train_workers: 1, num_cpus: 2, tokenize_actors: [1, 1], threads: 1}",
]


class Command:
    """`flextok` in a process of its own, whose descendants are found by a mark in their environment."""

    def __init__(self, *arguments: str, sets: tuple[str, ...] = (), program: str = AS_IN_A_TERMINAL, cwd: Path = ROOT):
        self.mark = f"flextok-test-{uuid.uuid4().hex}"
        options = [part for item in sets for part in ("--set", item)]
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the command
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments, *options],
            stdout=self._stdout, stderr=subprocess.PIPE, text=True, cwd=cwd, env={**os.environ, "MARK": self.mark},
        )  # fmt: skip
        self.told: list[str] = []
        self._known: dict[int, float] = {}

    def wait_for(self, text: str) -> None:
        """Read its lines until one has `text`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.told.append(line.rstrip())
            if text in line:
                return
        pytest.fail(f"expected a line with {text!r}, found it ended: {self.told}")

    def end_by(self, number: signal.Signals) -> float:
        """Send the signal; seconds until it has ended."""
        self._known = {child.pid: child.create_time() for child in psutil.Process(self.process.pid).children(True)}
        sent = time.monotonic()
        self.process.send_signal(number)
        assert self.process.stderr is not None
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
        seconds = time.monotonic() - sent
        self.told += self.process.stderr.read().splitlines()
        return seconds

    def finish(self, within_s: float = 180) -> int:
        """Its exit code, once it has ended by itself."""
        _, told = self.process.communicate(timeout=within_s)
        self.told += told.splitlines()
        return self.process.returncode

    def printed(self) -> list[str]:
        """Lines of its stdout by now."""
        self._stdout.seek(0)
        return self._stdout.read().decode().splitlines()

    def left(self, within_s: float = END_S) -> list[str]:
        """Command lines of its descendants that are there after `within_s`."""
        until = time.monotonic() + within_s
        while (found := self._alive()) and time.monotonic() < until:
            time.sleep(0.1)
        return found

    def _alive(self) -> list[str]:
        """Those that were below it before a signal, and all with its mark: a process that takes a title may lose that."""
        found = []
        for process in psutil.process_iter():
            try:
                known = self._known.get(process.pid) == process.create_time()
                ended = process.status() == psutil.STATUS_ZOMBIE
                if not ended and (known or self.mark in process.environ().get("MARK", "")):
                    found.append(" ".join(process.cmdline())[:100])
            except (psutil.Error, OSError):
                continue
        return found


def steps_done(workspace: str, kind: str) -> int:
    """Steps of the training at work, by the progress that its first worker writes; 0 before it does."""
    for path in Path(workspace).glob(f"checkpoints/{kind}/.runs/*/progress.json"):
        return json.loads(path.read_text())["step"]
    return 0


def wait_until(holds: Callable[[], bool], within_s: float = 300, every_s: float = 0.1) -> None:
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(every_s)
