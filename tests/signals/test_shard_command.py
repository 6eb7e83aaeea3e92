"""`flextok shard` in two processes ends by a signal, and leaves what a second run begins with."""

import io
import signal
import tarfile
from pathlib import Path

import pytest
from flextok_process import END_S, Command
from PIL import Image

pytestmark = pytest.mark.slow
PICTURES = 40_000


def write_tar(path: Path) -> None:
    """A WebDataset of `PICTURES` small pictures."""
    content = io.BytesIO()
    Image.new("RGB", (32, 32)).save(content, "PNG")
    with tarfile.open(path, "w") as tar:
        for number in range(PICTURES):
            entry = tarfile.TarInfo(f"{number:06d}.png")
            entry.size = content.tell()
            tar.addfile(entry, io.BytesIO(content.getvalue()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_its_processes(tmp_path: Path, number: signal.Signals) -> None:
    write_tar(tmp_path / "pictures.tar")
    command = Command(
        "shard", str(tmp_path / "pictures.tar"), str(tmp_path / "shards"), "--workers", "2", "--shard-samples", "1000"
    )
    command.wait_for("sharding: ")
    assert command.end_by(number) <= END_S
    assert command.process.returncode == 1
    assert command.told[-1].startswith("error: interrupted"), command.told
    assert not command.left()
    assert not (tmp_path / "shards" / "manifest.json").exists()
