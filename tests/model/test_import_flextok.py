"""`import flextok` is light, and still offers its API."""

import subprocess
import sys
from pathlib import Path

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


def test_a_tokenizer_is_loaded_without_torchs_compiler() -> None:
    """Its import costs a second and more, in every actor and command."""
    checkpoint = Path(__file__).parents[1] / "fixtures" / "checkpoints-c63be65" / "tokenizer"
    check = f"import sys, flextok; flextok.load_tokenizer({str(checkpoint)!r}); print({{'torch._dynamo', 'sympy'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_api_is_found_on_first_use() -> None:
    for name in flextok.__all__:
        assert getattr(flextok, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flextok.nothing
