"""The whole profile on unequal nodes that want a token, of which each stage loses one in its midst, and on clusters that
lose their head: the digests of one machine."""

import hashlib
import json
from pathlib import Path

import pytest
from flextok_process import Command, wait_until
from ray_nodes import RayNodes, ray_nodes
from shrunk_smoke import Built

from flextok.runtime import head

pytestmark = pytest.mark.slow
TOKEN = "cd" * 32
SIZES = (1, 2)  # CPUs
WORKERS = {
    "image_shards[scenes/train]": "_Worker",
    "latents": "RayTrainWorker",
    "tokenizer": "RayTrainWorker",
    "reconstructions": "_Worker",
    "token_shards[scenes/train]": "MapWorker",
    "prior": "RayTrainWorker",
    "samples": "_Worker",
    "fid": "_Worker",
}
HEADS_LOST = ("latents", "token_shards[scenes/train]", "samples")
"""Ray Train's, Ray Data's, and calls to workers: all other stages work in one of these ways."""
# A command whose main thread waits for Ray is ended by force.
IMPATIENT = """
from flextok.runtime import interrupts
interrupts.GRACE_S = 3
from pipelines.cli import main
main()
"""


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


@pytest.mark.timeout(1200)
def test_the_head_is_lost(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a stage of each kind of work. The same command on the next cluster, at last on this machine, goes on from there."""
    monkeypatch.setenv(head.RECONNECT, f"{head.BEFORE_THAT_S + 3:g}")
    workspace = tmp_path / "w"
    arguments = "refresh", "--profile", str(built.profile), "--workspace", str(workspace)
    for stage in HEADS_LOST:
        with ray_nodes() as nodes:
            address = nodes.start_head(cpus=0)
            nodes.add(2)
            command = Command(
                *arguments, sets=(f"compute.address={address}", "compute.train_workers=1"), program=IMPATIENT
            )
            command.wait_for(f"{stage}: start")
            wait_until(lambda stage=stage, nodes=nodes: bool(nodes.where(WORKERS[stage])), every_s=0.02)
            nodes.kill_head()
            assert command.finish() == 1, command.told
            assert command.told[-1].startswith(f"error: expected Ray's head at {address}"), command.told
            assert not command.left()
    command = Command(*arguments)
    assert command.finish() == 0, command.told
    check_made(workspace, built)


def check_made(workspace: Path, built: Built) -> None:
    """Whatever is there is what one machine makes, and nothing is wanting."""
    made, expected = contents(workspace), contents(built.workspace)
    for kind in ("manifest.json", "provenance.json", "metrics.json", ".png"):
        of_kind = {place: content for place, content in made.items() if place.endswith(kind)}
        assert of_kind and of_kind.items() <= expected.items(), kind


def replace(nodes: RayNodes, lost: int, sizes: dict[int, int]) -> None:
    """Kill a node; another of its size joins."""
    nodes.kill(lost)
    cpus = sizes.pop(lost)
    sizes[nodes.add(cpus)] = cpus


def contents(workspace: Path) -> dict[str, str]:
    """By place: digests of what was made, of whose evaluations the folder is named by it, and the samples' pictures."""
    found = {
        str(path.relative_to(workspace)): json.loads(path.read_text())["digest"]
        for name in ("manifest.json", "provenance.json")
        for path in workspace.rglob(name)
    }
    for path in workspace.glob("evaluation/*/metrics.json"):
        found[str(path.relative_to(workspace))] = path.parent.name
    for path in workspace.glob("samples/*/images/*/*.png"):
        found[str(path.relative_to(workspace))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
