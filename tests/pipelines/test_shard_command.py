"""What `flextok shard` tells."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.errors import FlextokError
from pipelines import cli


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (number, 90, 200)).save(file, format="JPEG")
    return file.getvalue()


def test_the_printed_sum_adds_up_in_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = {
        "foo.left.jpg": picture(0), "foo.right.jpg": picture(1), "foo.txt": b"two sides", "foo.json": b"{}", "foo.npy": b"0",
        "2 Track 2.2 (x).jpg": picture(2), "2 Track 2.2 (x).json": b"{}", "lost.txt": b"0", "lost.json": b"{}",
    }  # fmt: skip
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    command = ["shard", str(tar), str(tmp_path / "out"), "--workers", "1", "--max-reject-fraction", "0.5"]
    assert cli.run(command) == 0
    told = capsys.readouterr().err
    assert "9 members = 3 samples in 1 shards + 4 fields + 2 rejects (missing_image 1, unused_field 1)" in told


def test_hints_name_the_flag_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    (source / "train").mkdir(parents=True)
    (source / "train/1.jpg").write_bytes(picture(0))
    (source / "train/2.jpg").write_text("no picture")
    command = ["shard", str(source), str(tmp_path / "out"), "--workers", "1"]
    for split, flag, setting in (("train", "--max-reject-fraction", "max_reject_fraction"),
                                 ("val", "--val-fraction", "val_fraction")):  # fmt: skip
        assert cli.run([*command, "--split", split]) != 0
        told = capsys.readouterr().err.splitlines()[-1]
        assert flag in told and f"corpus.{setting}" not in told
        config = CorpusConfig.model_validate({"source": str(source)})
        with pytest.raises(FlextokError, match=rf"corpus\.{setting}"):
            shard_corpus(config, split, str(tmp_path / "library"), 1, progress=False)
