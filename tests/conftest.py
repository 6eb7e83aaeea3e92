"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data (real pictures, goldens), named by FLEXTOK_SHARED; required in CI."""
    folder = os.environ.get("FLEXTOK_SHARED")
    if folder and Path(folder).is_dir():
        return Path(folder)
    if os.environ.get("CI"):
        pytest.fail(f"CI needs the shared test data; FLEXTOK_SHARED is {folder!r}")
    pytest.skip("set FLEXTOK_SHARED to the folder with data/ and goldens/ to run this test")
