"""A cluster that asks for a token is joined with the one that is there, and says which it wants; nothing lands at home."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import ray_nodes

pytestmark = pytest.mark.slow
JOIN = """
import sys
from flextok.errors import FlextokError
from flextok.runtime.cluster import ensure_ray, stop_ray
try:
    ensure_ray(sys.argv[1], num_cpus=1)
except FlextokError as error:
    sys.exit(f"{type(error).__name__}: {error}")
import ray
import os
print(ray.get(ray.remote(lambda: 42).remote()), os.environ.get("RAY_AUTH_MODE"))
stop_ray()
"""
NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def start(home: Path, address: str, **settings: str) -> subprocess.Popen[str]:
    """A process of a user whose home is `home`."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, address], env={**environment, "HOME": str(home), **settings},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_nodes(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="the one") as nodes:
        yield nodes.start_head(cpus=1)


def test_a_token_that_is_there_is_used_and_another_is_told(address: str, tmp_path: Path) -> None:
    homes = {name: tmp_path / name for name in ("variable", "path", "file", "none", "wrong")}
    for home in homes.values():
        (home / ".ray").mkdir(parents=True)
    token = tmp_path / "token"
    token.write_text("the one")
    (homes["file"] / ".ray" / "auth_token").write_text("the one")
    (homes["wrong"] / ".ray" / "auth_token").write_text("another")
    settings = {"variable": {"RAY_AUTH_TOKEN": "the one"}, "path": {"RAY_AUTH_TOKEN_PATH": str(token)}}
    users = {name: start(home, address, **settings.get(name, {})) for name, home in homes.items()}
    ended = {name: (*user.communicate(timeout=240), user.returncode) for name, user in users.items()}
    for name in ("variable", "path", "file"):
        assert ended[name][0] == "42 token\n", ended[name]
    for name, found in (("none", "none is here"), ("wrong", "it refused the one in ~/.ray/auth_token")):
        out, told, code = ended[name]
        assert (out, code, told.count("\n")) == ("", 1, 1), told
        assert told.startswith(f"UsageError: expected the authentication token of the Ray cluster at {address}, ")
        assert f"found that {found}; give the one of its head" in told


def test_a_file_that_is_named_and_not_there(address: str, tmp_path: Path) -> None:
    user = start(tmp_path, address, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    _, told = user.communicate(timeout=240)
    assert told == (
        f"UsageError: expected a file with Ray's authentication token at {tmp_path}/token (RAY_AUTH_TOKEN_PATH), "
        "found: No such file or directory\n"
    )


def test_a_token_of_another_cluster_is_not_used_where_none_is_wanted(tmp_path: Path) -> None:
    """A process that asked for tokens would refuse the calls of such a cluster, which then takes it for gone."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of another")
    with ray_nodes(RAY_AUTH_MODE="disabled") as nodes:
        user = start(tmp_path, nodes.start_head(cpus=1))
        out, told = user.communicate(timeout=240)
    assert out == "42 None\n", told


def test_a_session_on_this_machine_leaves_nothing_at_home(tmp_path: Path) -> None:
    user = start(tmp_path, "local")
    out, told = user.communicate(timeout=240)
    assert out == "42 token\n", told
    assert list(tmp_path.rglob("*")) == []
