"""The script for Slurm, over two nodes of this machine: `srun` and `scontrol` are stand-ins that start things here."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from flextok_process import wait_until
from ray_nodes import host

from flextok.data.tokens import TokenStore

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "infra" / "slurm" / "flextok.sbatch"
SCONTROL = f'#!/bin/sh\n[ "$*" = "show hostnames node[2-3]" ] && printf "{host(2)}\\n{host(3)}\\n"\n'
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && export NODE=${1#*=}; shift; done
if [[ $1 == hostname ]]; then echo "$NODE"; else exec "$@"; fi
"""
# Where Ray is started on a node it gets the node's address, which on a machine of its own it would find by itself. The
# first start of the second node fails.
RAY = f"""#!/bin/bash
echo "$NODE" >> "$0.starts"
[[ $NODE == {host(3)} && $(grep --count --line-regexp {host(3)} "$0.starts") == 1 ]] && exit 1
exec "{Path(sys.executable).with_name("ray")}" "$@" --num-cpus=1 --node-ip-address="$NODE" --object-store-memory=157286400
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job; what it has left is ended."""
    for name, text in {"scontrol": SCONTROL, "srun": SRUN, "ray": RAY}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[2-3]"}
    yield {**os.environ, **job, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    for process in _of_the_job():
        process.kill()


def _of_the_job() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_JOB_ID") == str(os.getpid()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_job_on_two_nodes_stops_at_its_limit_and_resumes(
    inputs, undisturbed, tmp_path: Path, slurm: dict[str, str]
) -> None:
    dest = tmp_path / "tokens"
    command = [
        "bash", str(SCRIPT), "tokenize", inputs.corpus, str(dest), "--tokenizer", inputs.tokenizer, "--batch-size", "8",
        "--address", "auto",
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, env=slurm, stdout=log, stderr=log)
        wait_until(lambda: any(dest.glob("*.parquet")), every_s=0.005)
        job.send_signal(signal.SIGTERM)
        code = job.wait(60)
    told = (tmp_path / "log").read_text()
    assert code != 0 and "what was finished is kept" in told, told
    wait_until(lambda: not _of_the_job(), within_s=20)

    done = subprocess.run(command, env=slurm, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: not _of_the_job(), within_s=20)
    assert TokenStore.open(str(dest)).digest == undisturbed[1]
    assert (tmp_path / "ray.starts").read_text().splitlines().count(host(3)) == 3, (
        "a failed start, and one for each job"
    )
