"""Small pictures and sources for the tests of corpora."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(number: int, size: int = 32, format: str = "JPEG") -> bytes:
    """A file with a picture of its own for each number."""
    rgb = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).resize((size, size), Image.Resampling.NEAREST).save(file, format=format)
    return file.getvalue()


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes `names` as pictures below tmp_path/<folder>."""

    def make(names: list[str], folder: str = "source", first: int = 0) -> Path:
        for number, name in enumerate(names, start=first):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
        return tmp_path / folder

    return make


@pytest.fixture
def make_tar() -> Callable[..., Path]:
    """Writes (name, content) members into a tar."""

    def make(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return path

    return make
