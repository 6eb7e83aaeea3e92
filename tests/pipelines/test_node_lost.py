"""The whole profile on unequal nodes that want a token, of which each stage loses one in its midst: the digests of one
machine."""

from pathlib import Path

import pytest
from clusters import WORKERS, check_made
from flextok_process import Command, wait_until
from ray_nodes import RayNodes, ray_nodes
from shrunk_smoke import Built

pytestmark = pytest.mark.slow
TOKEN = "cd" * 32
SIZES = (1, 2)  # CPUs


@pytest.mark.timeout(1200)
def test_each_stage_loses_a_node(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside it another job of the same cluster."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    workspace = tmp_path / "w"
    with ray_nodes(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) as nodes:
        address = nodes.start_head(cpus=0)
        sizes = {nodes.add(cpus): cpus for cpus in SIZES}
        command = Command(
            "run", "--profile", str(built.profile), "--workspace", str(workspace),
            sets=(f"compute.address={address}", "compute.train_workers=1", "compute.tokenize_actors=[1, 2]", "compute.max_failures=5"),
        )  # fmt: skip
        (corpus,), (tokenizer,) = (
            built.workspace.glob("corpora/*/val"),
            built.workspace.glob("checkpoints/tokenizer/[!.]*"),
        )
        other = Command(
            "tokenize", str(corpus), str(tmp_path / "o"), "--tokenizer", str(tokenizer), "--address", address
        )
        for stage, worker in WORKERS.items():
            command.wait_for(f"{stage}: start")
            wait_until(lambda worker=worker: bool(nodes.where(worker)), every_s=0.02)
            replace(nodes, nodes.where(worker)[0], sizes)
        assert command.finish() == 0, command.told
        assert other.finish() == 0, other.told
    check_made(workspace, built)


def replace(nodes: RayNodes, lost: int, sizes: dict[int, int]) -> None:
    """Kill a node; another of its size joins."""
    nodes.kill(lost)
    cpus = sizes.pop(lost)
    sizes[nodes.add(cpus)] = cpus
