"""Clusters lose their head in a stage of each kind of work: the same command on the next one goes on from there."""

from pathlib import Path

import pytest
from clusters import WORKERS, check_made
from flextok_process import Command, wait_until
from ray_nodes import ray_nodes
from shrunk_smoke import Built

from flextok.runtime import head

pytestmark = pytest.mark.slow
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
