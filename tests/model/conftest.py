"""Models shared by the tests of flextok.model: the golden one, and a tiny one with random weights."""

from pathlib import Path

import pytest
from tiny_models import TINY, scrambled

from flextok.model.load import load_tokenizer
from flextok.model.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def golden_folder(shared: Path) -> Path:
    """The published layout with random weights, its inputs and its outputs."""
    return shared / "goldens" / "tiny_a"


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Tokenizer:
    """The golden model, loaded."""
    return load_tokenizer(str(golden_folder))


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    """A small model with random weights."""
    return scrambled(TINY)
