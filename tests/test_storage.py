"""Paths are taken letter by letter: no pattern, chain or home folder in the middle of a name."""

from pathlib import Path

import pytest

from flextok import storage

ODD = ["w*", "w?", "[w]", "w%41", "w#x", "w\nx", "w '\"\\", "é 日本", "~w", "-w", "file:w"]


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else f"memory://{tmp_path}"


@pytest.mark.parametrize("name", ODD)
def test_any_name_is_written_listed_read_and_removed(root: str, name: str) -> None:
    others = [storage.join(root, other, "file") for other in ("w", "wx", "w1", "wA", "x")]
    for other in others:
        storage.write_bytes(other, b"other")
    folder = storage.join(root, name)
    storage.write_bytes(storage.join(folder, name), b"content")
    assert storage.list_names(folder) == [name]
    assert storage.exists(folder) and storage.size(storage.join(folder, name)) == 7
    assert storage.read_bytes(storage.join(folder, name)) == b"content"
    storage.remove(storage.join(folder, name))
    assert storage.list_names(folder) == []
    storage.write_bytes(storage.join(folder, "below", "file"), b"content")
    storage.remove(folder)
    assert not storage.exists(folder)
    assert [storage.read_bytes(other) for other in others] == [b"other"] * len(others)


@pytest.mark.parametrize("name", ["*", "w?", "[w]x", "**"])
def test_removing_what_is_not_there_removes_nothing_that_fits_it_as_a_pattern(root: str, name: str) -> None:
    for other in ("wx", "wy"):
        storage.write_bytes(storage.join(root, other), b"other")
    storage.remove(storage.join(root, name))
    assert storage.list_names(root) == ["wx", "wy"]


def test_a_relative_name_means_the_same_for_writer_and_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~nobody-of-that-name", "file:x", "-x", "a::b"):
        storage.write_bytes(f"{name}/file", b"content")
        assert storage.read_bytes(f"{name}/file") == b"content"
        assert (tmp_path / name / "file").is_file()
        assert storage.absolute(name) == str(tmp_path / name)
        assert storage.read_bytes(str(tmp_path / name / "file")) == b"content"
