"""`flextok tokenize` ends by a signal in the middle of a corpus; the same command finishes the rest."""

import signal
from pathlib import Path

import pytest
from flextok_process import END_S, Command, wait_until
from tokenize_helpers import SHARDS

from flextok.data.tokens import TokenStore

pytestmark = pytest.mark.slow


def test_a_signal_ends_bulk_tokenization_and_the_same_command_finishes_it(inputs, undisturbed, tmp_path: Path) -> None:
    dest = tmp_path / "tokens"
    arguments = ["tokenize", inputs.corpus, str(dest), "--tokenizer", inputs.tokenizer, "--batch-size", "8"]
    command = Command(*arguments)
    wait_until(lambda: any(dest.glob("*.parquet")) or command.process.poll() is not None, every_s=0.005)
    assert command.end_by(signal.SIGTERM) <= END_S
    assert command.process.returncode == 1
    assert command.told[-1].startswith("error: interrupted; what was finished is kept"), command.told
    assert not [line for line in command.told if "Traceback" in line or "ERROR" in line], command.told
    assert not command.left()
    kept = {path.name: path.stat().st_mtime_ns for path in dest.glob("*.parquet")}
    assert 0 < len(kept) < SHARDS
    assert Command(*arguments).finish() == 0
    assert TokenStore.open(str(dest)).digest == undisturbed[1]
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in dest.glob("*.parquet")}.items()
