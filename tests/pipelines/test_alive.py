"""A run whose process and server are gone is marked as failed; one that lives is not."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from pipelines import alive
from pipelines.workspace import Workspace

HOLDS = """
import sys
from pipelines.alive import alive
from pipelines.workspace import Workspace
with alive(Workspace(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [True, False])
def test_a_run_is_lost_with_its_process(killed: bool, tmp_path: Path) -> None:
    workspace = Workspace(f"{tmp_path}/w")
    graph = dg.Definitions().resolve_asset_graph()
    with workspace.instance() as instance:
        job = dg.define_asset_job("any").resolve(asset_graph=graph)
        run_id = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED).run_id
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDS, workspace.root, run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"

        def look() -> tuple[list[str], str]:
            lost = alive.mark_lost_runs(instance, workspace)
            run = instance.get_run_by_id(run_id)
            assert run is not None
            return lost, run.status.value

        if killed:
            holder.kill()
            holder.wait()
        assert look() == ([], "STARTED")  # the file is young
        for file in (workspace.dagster_home / alive.FOLDER).iterdir():
            os.utime(file, (0, 0))
        assert look() == (([run_id], "FAILURE") if killed else ([], "STARTED"))
        holder.communicate()
        assert look() == ([], "FAILURE" if killed else "STARTED")
        assert not list((workspace.dagster_home / alive.FOLDER).iterdir())


def test_a_workspace_without_records_gets_none(tmp_path: Path) -> None:
    with alive.alive(Workspace(f"{tmp_path}/w"), "run"):
        assert not (tmp_path / "w").exists()
