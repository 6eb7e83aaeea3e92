"""A disk that is really full under Dagster's records: one line, and all goes well once there is room."""

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.record_faults import telling_record_faults

FULL = (
    r"error: could not .*: \[Errno 28\] No space left on device: .*; free some room, then run the same command again.*"
)


# Sizes at which making the tables, writing an event and opening the files again were found to fail.
@pytest.mark.parametrize("size", ["40k", "300k", "400k", "500k", "600k"])
def test_a_full_disk_is_one_line_and_no_lasting_harm(
    size: str, small_disk: tuple[Path, Callable[[str], None]], capsys: pytest.CaptureFixture[str]
):
    folder, resize = small_disk
    resize(size)
    arguments = [
        "run", "--select", "corpus,image_shards", "--workspace", str(folder / "w"),
        "--set", "corpus.scenes.train_samples=8", "--set", "corpus.scenes.val_samples=4",
    ]  # fmt: skip
    for _ in range(2):  # at first and when it finds the records of the first
        assert cli.run(arguments) == 1
        assert re.fullmatch(FULL, capsys.readouterr().err.splitlines()[-1])
    resize("20m")
    assert cli.run(arguments) == 0


def test_other_errors_stay_what_they_are(tmp_path: Path):
    with pytest.raises(sqlite3.OperationalError, match="unable to open"), telling_record_faults(tmp_path):
        sqlite3.connect(tmp_path / "no" / "folder.db")
    with pytest.raises(ValueError), telling_record_faults(tmp_path):
        raise ValueError


def test_errors_that_lead_to_each_other_end(tmp_path: Path):
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    with pytest.raises(ValueError, match="first"), telling_record_faults(tmp_path):
        raise first
