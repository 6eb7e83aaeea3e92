"""`make` on machines with other Pythons: which one it takes, and what it says where there is none."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKS, FAILS = "exit 0", "echo 'command not found' >&2; exit 127"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile and what it looks at, without an environment."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "bin").mkdir()
    return folder


def plan(checkout: Path, *arguments: str, **pythons: str) -> subprocess.CompletedProcess[str]:
    """What `make demo` would do with only these programs on the PATH (name with `_` for the dot -> what they do)."""
    for name, does in pythons.items():
        program = checkout / "bin" / name.replace("_", ".")
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    make = shutil.which("make")
    assert make
    return subprocess.run(
        [make, "--dry-run", "demo", *arguments],
        cwd=checkout, env={"PATH": str(checkout / "bin")}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_newest_that_runs_is_taken(checkout: Path) -> None:
    # A name of pyenv's is there and fails where its version is not the chosen one.
    pythons = {"python3_14": FAILS, "python3_13": WORKS, "python3_12": WORKS, "python3_11": WORKS, "python3": WORKS}
    assert "python3.13 -m venv" in plan(checkout, **pythons).stdout


def test_a_python_by_its_short_name_is_taken_when_its_version_fits(checkout: Path) -> None:
    assert "python3 -m venv" in plan(checkout, python3=WORKS, python=WORKS).stdout
    assert "python -m venv" in plan(checkout, python3=FAILS).stdout


def test_one_line_says_what_is_missing(checkout: Path) -> None:
    for pythons in ({}, {"python3": FAILS}):
        done = plan(checkout, **pythons)
        assert done.returncode == 2 and "-m venv" not in done.stdout
        (line,) = done.stderr.splitlines()
        assert "expected Python 3.11 to 3.14" in line and "found none" in line and "PYTHON=" in line


def test_the_one_that_is_named_is_taken(checkout: Path) -> None:
    assert "/opt/python -m venv" in plan(checkout, "PYTHON=/opt/python", python3_14=WORKS).stdout


def test_make_and_the_package_agree_on_the_versions() -> None:
    text = (ROOT / "Makefile").read_text()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11,<3.15"
    assert (
        "(3, 11) <= sys.version_info[:2] <= (3, 14)" in text and "python3.14 python3.13 python3.12 python3.11" in text
    )
