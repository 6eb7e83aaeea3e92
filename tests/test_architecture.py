"""The rooms of the house: which package may import which, read from the source, and what an import costs."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What each room may import of the others; its own modules always.
BASE = {path.stem for path in (ROOT / "flextok").glob("*.py")} - {"generate"}
GROUND = BASE | {"runtime"}
ROOMS = {
    "runtime": BASE,
    "data": GROUND,
    "model": GROUND,
    "metrics": GROUND | {"model"},  # the networks that some look through
    "train": GROUND | {"data", "model", "metrics"},
    "tokenize": GROUND | {"data", "model", "metrics"},
    "evaluate": GROUND | {"data", "model", "metrics", "tokenize"},  # samples are made by the job of tokens
    "serve": GROUND | {"data", "model"},
    "generate": GROUND | {"data", "model", "evaluate"},
    "bench": GROUND | {"data", "model", "metrics", "train", "tokenize", "evaluate", "serve"},
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether the import stands at the top level) of every import in a file."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in top
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def library_files() -> list[Path]:
    return sorted((ROOT / "flextok").rglob("*.py"))


def test_the_library_never_imports_the_orchestration():
    wrong = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in library_files()
        for module, _ in imports(path)
        if module.split(".")[0] in ("dagster", "pipelines", "typer")
    ]
    assert not wrong


def test_dagsters_own_modules_are_used_in_one_place():
    """And there is in them what is used."""
    private = {
        (path.relative_to(ROOT).as_posix(), module)
        for path in (ROOT / "pipelines").rglob("*.py")
        for module, _ in imports(path)
        if module.startswith("dagster._")
    }
    place = "dagster._core.instance.ref"
    assert private == {("pipelines/workspace.py", place), ("pipelines/workspace.py", f"{place}.InstanceRef")}
    from dagster._core.instance.ref import InstanceRef

    assert {"base_dir", "overrides"} <= inspect.signature(InstanceRef.from_dir).parameters.keys()


def test_arrows_between_rooms_point_one_way():
    wrong = []
    for path in library_files():
        room = path.relative_to(ROOT / "flextok").parts[0].removesuffix(".py")
        for module, _ in imports(path):
            parts = module.split(".")
            if parts[0] != "flextok" or len(parts) < 2 or parts[1] == room:
                continue
            allowed = ROOMS.get(room, BASE if room != "__init__" else BASE | set(ROOMS))
            if parts[1] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}: {module}")
    assert not wrong


def test_asset_modules_keep_their_annotations():
    """Dagster reads the annotations of asset bodies and resources; postponed ones it cannot resolve in functions."""
    wrong = [
        path.name
        for path in (ROOT / "pipelines").rglob("*.py")
        if any(module == "__future__.annotations" for module, _ in imports(path))
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("flextok", {"torch", "ray", "torchvision", "dagster"}),
        ("flextok.tokenize.decoding", {"torch", "ray", "pyarrow", "polars"}),  # decoding processes start fast
        ("pipelines.cli", {"typer", "rich", "pydantic", "fsspec"}),  # signals are owned before these are imported
        ("pipelines.app", {"torch", "ray", "torchvision", "matplotlib", "dagster"}),
        ("pipelines.stages", {"torch", "ray", "torchvision", "matplotlib", "dagster"}),
        ("pipelines.definitions", {"torch", "ray", "torchvision", "matplotlib"}),
    ],
)
def test_imports_are_light(module: str, heavy: set[str]):
    program = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
