"""`ray job submit` and `ray job stop`, by which a laptop drives a cluster."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flextok_process import wait_until
from ray_nodes import RAY, RayNodes, ray_nodes

from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore, verify_tokens

pytestmark = pytest.mark.slow
FLEXTOK = str(Path(sys.executable).with_name("flextok"))
STOP_S = 30
VIEWS = [f"{crop}{flip}" for crop in ("center", "start", "end") for flip in ("", "_flip")]  # so that it takes a while
TOKEN = "ab" * 32


def test_a_submitted_job_shows_its_progress_stops_when_told_and_resumes(inputs, tmp_path: Path) -> None:
    dest = tmp_path / "tokens"
    work = [
        FLEXTOK, "tokenize", inputs.corpus, str(dest), "--tokenizer", inputs.tokenizer, "--batch-size", "1",
        "--address", "auto", *(part for view in VIEWS for part in ("--view", view)),
    ]  # fmt: skip
    with ray_nodes(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) as nodes:
        address = head_with_dashboard(nodes)
        # Some seconds pass until a head that has started takes jobs.
        wait_until(lambda: job(nodes, address, "submit", "--no-wait", "--submission-id=first", "--", *work)[0] == 0)
        wait_until(lambda: any(dest.glob("*.parquet")), every_s=0.005)
        told = time.monotonic()
        code, text = job(nodes, address, "stop", "first")
        assert code == 0 and "stopped" in text and time.monotonic() - told < STOP_S, text
        kept = {path.name: path.stat().st_mtime_ns for path in dest.glob("*.parquet")}
        assert kept and not (dest / "manifest.json").exists()

        code, text = job(nodes, address, "submit", "--submission-id=second", "--", *work)
    assert code == 0 and "tokenizing: " in text and "succeeded" in text, text
    assert len(TokenStore.open(str(dest))) == len(VIEWS) * Corpus.open(inputs.corpus).num_samples
    assert verify_tokens(str(dest), inputs.corpus) == []
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in dest.glob("*.parquet")}.items()


def head_with_dashboard(nodes: RayNodes) -> str:
    """Its agent, which starts jobs, would otherwise want a port that another Ray of this machine may have."""
    ports = []
    for _ in range(2):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            ports.append(found.getsockname()[1])
    agent = f"--dashboard-agent-listen-port={ports[1]}"
    nodes.start_head(1, "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[0]}", agent)
    return f"http://127.0.0.1:{ports[0]}"


def job(nodes: RayNodes, address: str, command: str, *arguments: str) -> tuple[int, str]:
    """Exit code and lines of `ray job`."""
    done = subprocess.run(
        [RAY, "job", command, f"--address={address}", *arguments],
        env=nodes.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr
