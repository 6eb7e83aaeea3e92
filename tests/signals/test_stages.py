"""A run ends within ten seconds of a signal also while it shards, and leaves no process behind."""

import signal
from pathlib import Path

import pytest
from flextok_process import END_S, SMALL, Command

pytestmark = pytest.mark.slow


def test_sharding_in_two_processes_ends_by_a_signal(tmp_path: Path) -> None:
    command = Command(
        "run", "--select", "+image_shards", "--workspace", str(tmp_path / "w"),
        sets=(*SMALL, "corpus.scenes.train_samples=1000000"),
    )  # fmt: skip
    command.wait_for("sharding: ")
    assert command.end_by(signal.SIGTERM) <= END_S
    assert command.told[-1].startswith("error: interrupted"), command.told
    assert not command.left()
