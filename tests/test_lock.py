"""The lock of everything that is written: one holder at a time, named to the others, gone when it dies."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flextok import storage
from flextok.errors import FlextokError, UsageError
from flextok.runtime.lock import LOCK_FILE, LockedError, locked
from flextok.runtime.lock.holder import Holder
from flextok.runtime.lock.remote import STALE_AFTER_S


@contextlib.contextmanager
def holder_elsewhere(dest: str) -> Iterator[subprocess.Popen[str]]:
    """Another process which holds `dest`."""
    program = str(Path(__file__).with_name("lock_process.py"))
    process = subprocess.Popen(
        [sys.executable, "-P", program, "train", "toy", "--set", "secret=1", dest],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(params=["disk", "s3"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "dest") if request.param == "disk" else f"{request.getfixturevalue('s3_folder')}/dest"


def test_the_second_ends_at_once_and_names_the_first(dest: str) -> None:
    with holder_elsewhere(dest) as process:
        with pytest.raises(FlextokError, match="another run is writing") as caught, locked(dest):
            pass
        told = str(caught.value)
        assert "\n" not in told and dest in told and f"(process {process.pid} on {socket.gethostname()})" in told
        assert "lock_process.py train toy since 20" in told and "secret" not in told
        process.communicate("")
        with locked(dest):
            assert storage.exists(storage.join(dest, LOCK_FILE))
    assert not storage.exists(storage.join(dest, LOCK_FILE))


def test_a_killed_holder_blocks_nobody(dest: str) -> None:
    with holder_elsewhere(dest) as process:
        process.kill()
        process.wait()
        assert storage.exists(storage.join(dest, LOCK_FILE))
        with locked(dest), pytest.raises(LockedError), locked(dest):
            pass
    assert not storage.exists(storage.join(dest, LOCK_FILE))


@pytest.mark.parametrize("kind", ["free", "stale"])
def test_of_many_that_begin_at_once_one_wins(kind: str, dest: str) -> None:
    url, count = storage.join(dest, LOCK_FILE), 6
    if kind == "stale":
        gone = Holder("of another", 1, "elsewhere.example", time.time() - STALE_AFTER_S - 1)
        storage.write_bytes(url, gone.to_json())
    begin, tried = threading.Barrier(count), threading.Barrier(count)
    won, lost = [], []

    def run(number: int) -> None:
        begin.wait()
        try:
            with locked(dest):
                won.append(number)
                tried.wait()
        except LockedError:
            lost.append(number)
            tried.wait()

    for _ in range(3):
        won.clear()
        lost.clear()
        threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, count - 1)
    assert not storage.exists(url)


def test_a_folder_made_for_the_lock_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "new", "used"):
        with locked(str(tmp_path / name)):
            if name == "used":
                (tmp_path / name / "file").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "there", "used"]


def test_a_folder_that_is_removed_while_held_may_be_taken_by_the_next(tmp_path: Path) -> None:
    """The end of the first one must not take the lock file of the second along."""
    dest = str(tmp_path / "run")
    with contextlib.ExitStack() as first:
        first.enter_context(locked(dest))
        storage.remove(dest)
        with locked(dest):
            first.close()
            assert storage.exists(storage.join(dest, LOCK_FILE))
            with pytest.raises(LockedError), locked(dest):
                pass


def test_a_store_without_conditions_has_a_lock_too(tmp_path: Path) -> None:
    dest = f"memory://{tmp_path.name}/dest"
    with locked(dest), pytest.raises(LockedError, match="another run is writing"), locked(dest):
        pass
    storage.write_bytes(storage.join(dest, LOCK_FILE), b"no lock of ours")
    with locked(dest):
        pass
    assert not storage.exists(storage.join(dest, LOCK_FILE))


def test_a_holder_written_by_an_earlier_version_is_understood() -> None:
    content = b'{"token": "a", "process": 7, "host": "elsewhere.example", "renewed": 1.5}'
    assert str(Holder.from_json(content)) == "a run (process 7 on elsewhere.example)"


def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder that can be written"), locked(str(tmp_path / "file" / "x")):
        pass
