"""Memory and time do not grow with what a corpus holds, but with what is planned at most."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("scale_process.py")


def measure(*arguments: object) -> tuple[float, float]:
    """Peak MiB and processor seconds of a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "POLARS_MAX_THREADS": "2"}
    done = subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)],
                          env=environment, text=True, stdout=subprocess.PIPE, check=True)  # fmt: skip
    peak_mib, seconds = map(float, done.stdout.split())
    return peak_mib, seconds


@pytest.mark.slow
def test_a_listing_of_imagenets_size_is_planned_in_bounds(tmp_path: Path) -> None:
    peak_mib, seconds = measure("plan", 1_300_000, tmp_path)
    assert peak_mib < 1024 and seconds < 60


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_pictures(make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(make_picture(0))
    peaks = []
    for count in (1_500, 15_000):
        (tmp_path / str(count)).mkdir()
        peaks.append(measure("shard", count, tmp_path / "one.jpg", tmp_path / str(count))[0])
    assert peaks[1] < 1.2 * peaks[0], peaks
