"""`import flextok` is light, and still offers its API."""

import subprocess
import sys

import pytest

import flextok


def test_import_loads_nothing_heavy() -> None:
    check = "import sys, flextok; print(sorted({'torch', 'ray', 'torchvision', 'dagster'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_model_code_loads_neither_ray_nor_dagster_nor_torchvision() -> None:
    check = "import sys, flextok; flextok.load_tokenizer; print(sorted({'ray', 'torchvision', 'dagster'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_api_is_found_on_first_use() -> None:
    for name in flextok.__all__:
        assert getattr(flextok, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flextok.nothing
