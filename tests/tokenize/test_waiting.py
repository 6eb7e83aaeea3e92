"""A job on a cluster says what it waits for and which node was lost, be it the head, and ends with the rows of an
undisturbed one."""

import subprocess
import sys
from pathlib import Path

import pytest
from flextok_process import Command, wait_until
from ray_nodes import host, ray_nodes

from flextok.data.tokens import TokenStore
from flextok.runtime import head

pytestmark = pytest.mark.slow
IMPATIENT = """
from flextok.runtime import watch
watch.WAIT_S = 1
from pipelines.cli import main
main()
"""
HOLDS_A_CPU = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
actor = ray.remote(num_cpus=1, label_selector={"pool": "fast"})(type("Actor", (), {"ready": lambda self: None})).remote()
ray.get(actor.ready.remote())
print("held", flush=True)
sys.stdin.read()
"""


def test_waiting_and_lost_nodes_are_told(inputs, undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head has a CPU too, but is not what the job asks for."""
    monkeypatch.setenv(head.RECONNECT, f"{head.BEFORE_THAT_S + 7:g}")
    dest = tmp_path / "tokens"
    job = [
        "tokenize", inputs.corpus, str(dest), "--tokenizer", inputs.tokenizer, "--batch-size", "8",
        "--resource", "pool=fast", "--resource", "seat=1",
    ]  # fmt: skip
    options = "--labels=pool=fast", '--resources={"seat": 1}'
    with ray_nodes() as nodes:
        address = nodes.start_head(cpus=1)
        first = nodes.add(1, *options)
        other = subprocess.Popen(
            [sys.executable, "-c", HOLDS_A_CPU, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        command = Command(*job, "--address", address, program=IMPATIENT)
        command.wait_for("waiting for 1 CPU, pool=fast and seat=1 on one node for an actor: the cluster has 2 nodes")
        assert "the largest has 1 CPU; free in all: 1 CPU; " in command.told[-1]
        other.communicate()
        wait_until(lambda: any(dest.glob("*.parquet")), every_s=0.005)
        nodes.kill(first)
        command.wait_for(f"lost node {host(first)}: ")
        nodes.add(1, *options)
        command.wait_for("joined")
        nodes.kill_head()
        assert command.finish() == 1, command.told
        assert f"Ray's head at {address} does not answer" in command.told[-2], command.told
        assert command.told[-1].startswith(f"error: expected Ray's head at {address}, found no answer"), command.told
        kept = {path: path.stat().st_mtime_ns for path in dest.glob("*.parquet")}
    with ray_nodes() as nodes:
        address = nodes.start_head(1, "--include-dashboard=false", *options)
        again = Command(*job, "--address", address)
        assert again.finish() == 0, again.told
    assert kept and kept.items() <= {path: path.stat().st_mtime_ns for path in dest.glob("*.parquet")}.items()
    assert TokenStore.open(str(dest)).digest == undisturbed[1]
    assert (len(command.printed()), len(again.printed())) == (0, 1)
    assert not [
        line for line in command.told if "infinite retries" in line or "ray." in line or "logging.cc" in line
    ], command.told
