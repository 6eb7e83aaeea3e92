"""The wheel, installed into an environment of its own: profiles by name and the whole pipeline, far from the checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.recipe import profile_names

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", "flextok", "pipelines", "configs", "infra")
Flextok = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "tree").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / "tree" / name)
    command = [
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(folder / "tree"),
    ]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; other packages come from this one, without its links to the checkout."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    command = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    # Python reads .pth files in its own site-packages only, so an editable install in these folders stays unseen.
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    return environment


@pytest.fixture
def flextok(installed: Path, tmp_path: Path) -> Flextok:
    """The installed command, run in an empty folder."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*arguments: str, program: str = "flextok") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(installed / "bin" / program), *arguments],
            cwd=tmp_path, env=inherited, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_the_wheel_has_every_module_and_what_they_read(wheel: Path) -> None:
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for top in ("flextok", "pipelines") for path in (ROOT / top).rglob("*.py")}
    profiles = {f"pipelines/configs/{name}.yaml" for name in profile_names()}
    pages = {
        str(path.relative_to(ROOT))
        for folder in ("templates", "page")
        for path in (ROOT / "flextok").rglob(f"{folder}/*.*")
        if path.suffix != ".py"
    }
    assert found == modules | profiles | pages | {"pipelines/infra/dagster/dagster.yaml"}


def test_nothing_comes_from_the_checkout(installed: Path, flextok: Flextok) -> None:
    code = "import flextok, pipelines, sys; print(flextok.__file__, pipelines.__file__, *sys.path, sep='\\n')"
    first, second, *searched = flextok("-c", code, program="python").stdout.splitlines()
    assert Path(first).is_relative_to(installed) and Path(second).is_relative_to(installed)
    assert str(ROOT) not in searched


def test_profiles_are_found_by_name(flextok: Flextok, tmp_path: Path) -> None:
    assert "Usage: flextok" in flextok("--help").stdout
    assert "report" in flextok("run", "--profile", "photos", "--dry-run").stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_shrunk_smoke_profile_runs_in_an_empty_folder(flextok: Flextok, tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "pipelines"))
    from shrunk_smoke import SHRUNK

    sets = [part for key, value in SHRUNK.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    report = Path(flextok("run", *sets).stdout.strip())
    assert report.is_relative_to(tmp_path / "workspace") and report.is_file()
    assert "enabled: false" in (tmp_path / "workspace" / "dagster" / "dagster.yaml").read_text()
    states = json.loads(flextok("status", "--json", *sets).stdout)["assets"]
    assert {state["status"] for state in states} == {"fresh"}
    assert [path.name for path in tmp_path.iterdir()] == ["workspace"]
