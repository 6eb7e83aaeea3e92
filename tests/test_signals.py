"""Every command ends within ten seconds of a signal, in whatever stage it is, and leaves no process behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONG = 1_000_000
END_S = 10
# As a terminal starts a command: what runs in the background of a script ignores Ctrl-C.
AS_IN_A_TERMINAL = """
import signal
import socket
signal.signal(signal.SIGINT, signal.default_int_handler)
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

    def __init__(self, *arguments: str, sets: tuple[str, ...] = (), program: str = AS_IN_A_TERMINAL):
        self.mark = f"flextok-test-{uuid.uuid4().hex}"
        options = [part for item in sets for part in ("--set", item)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments, *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "MARK": self.mark},
        )  # fmt: skip
        self.told: list[str] = []

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

    def left(self, within_s: float = END_S) -> list[str]:
        """Command lines of its descendants that are there after `within_s`."""
        until = time.monotonic() + within_s
        while (found := self._alive()) and time.monotonic() < until:
            time.sleep(0.1)
        return found

    def _alive(self) -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
            except OSError:
                continue
        return found


def steps_done(workspace: str, kind: str) -> int:
    """Steps of the training at work, by the progress that its first worker writes; 0 before it does."""
    for path in Path(workspace).glob(f"checkpoints/{kind}/.runs/*/progress.json"):
        return json.loads(path.read_text())["step"]
    return 0


def wait_until(holds: Callable[[], bool], within_s: float = 120) -> None:
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "w")


def test_stages_of_a_run_end_by_their_signals_and_a_refresh_resumes(workspace: str) -> None:
    """One workspace, brought stage by stage to its end, each stage first cut off in the middle."""
    arguments = ["--workspace", workspace]
    cuts = [
        ("vae", signal.SIGTERM, f"latents.train.steps={LONG}", "+latents"),
    ]
    for kind, number, long, select in cuts:
        cut = Command("run", "--select", select, *arguments, sets=(*SMALL, long))
        cut.wait_for(f"train {kind}")
        wait_until(lambda kind=kind: steps_done(workspace, kind) > 0)
        assert cut.end_by(number) <= END_S
        assert cut.process.returncode == 1
        assert cut.told[-1].startswith("error: interrupted; "), cut.told
        resumed = re.search(rf"resumes the training of the {kind} after step ([\d,]+) of", cut.told[-1])
        assert resumed is not None and int(resumed[1].replace(",", "")) > 0, cut.told[-1]
        assert not cut.left()
        whole = Command("run", "--select", select, *arguments, sets=tuple(SMALL))
        whole.wait_for(f"{select.split(',')[-1].strip('+')}: done")
        assert whole.process.wait(60) == 0


def test_a_killed_run_leaves_nothing_running(workspace: str) -> None:
    command = Command(
        "run", "--select", "+latents", "--workspace", workspace, sets=(*SMALL, f"latents.train.steps={LONG}")
    )
    command.wait_for("train vae")
    command.end_by(signal.SIGKILL)
    assert not command.left(30)


def test_sharding_in_two_processes_ends_by_a_signal(tmp_path: Path) -> None:
    command = Command(
        "run", "--select", "+image_shards", "--workspace", str(tmp_path / "w"),
        sets=(*SMALL, "corpus.scenes.train_samples=1000000"),
    )  # fmt: skip
    command.wait_for("sharding: ")
    assert command.end_by(signal.SIGTERM) <= END_S
    assert command.told[-1].startswith("error: interrupted"), command.told
    assert not command.left()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_ui_leaves_none_of_its_processes(workspace: str, number: signal.Signals) -> None:
    """Started as a script starts it with `&`: SIGINT is ignored by it, and would be by all that it starts."""
    port = free_port()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        command = Command("ui", "--workspace", workspace, "--port", str(port), program=IN_THE_BACKGROUND)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until(lambda: answers(port))
    assert len(command.left(0)) >= 4
    assert command.end_by(number) <= END_S
    assert command.process.returncode == (0 if number == signal.SIGTERM else -number)
    assert not command.left(2 * END_S)
