"""The processes of infra/docker/compose.yaml over a real Postgres: kills and lost connections cost no result."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from flextok_process import Command, steps_done, wait_until
from postgres_server import PASSWORD, PostgresServer, postgres
from ray_nodes import free_port
from shrunk_smoke import shrunk_profile

from pipelines import staleness
from pipelines.automation import PROFILE_TAG
from pipelines.workspace import Workspace

pytestmark = pytest.mark.slow
INFRA = Path(__file__).parents[2] / "infra"
COMPOSE = yaml.safe_load((INFRA / "docker" / "compose.yaml").read_text())
SETS = ("latents.train.steps=600", "compute.train_workers=1", "automation.refresh='* * * * *'")


class Deployment:
    """The services of the compose file but Postgres, each by its own command, on other ports of this machine."""

    def __init__(self, folder: Path, server: PostgresServer):
        self.server = server
        self.workspace = Workspace(f"{folder}/w")
        home = self.workspace.dagster_home
        home.mkdir(parents=True)
        settings = (INFRA / "dagster" / "dagster-postgres.yaml").read_text()
        (home / "dagster.yaml").write_text(settings.replace("_seconds: 30", "_seconds: 3"))
        code, web = free_port("127.0.0.1"), free_port("127.0.0.1")
        locations = (INFRA / "dagster" / "workspace.yaml").read_text()
        self.locations = folder / "workspace.yaml"
        self.locations.write_text(locations.replace("host: code", "host: 127.0.0.1").replace("4000", str(code)))
        self._here = {
            "0.0.0.0": "127.0.0.1", "4000": str(code), "3000": str(web),
            "/app/infra/dagster/workspace.yaml": str(self.locations),
        }  # fmt: skip
        self.profile = shrunk_profile(folder / "smoke.yaml")
        own = {
            "DAGSTER_HOME": str(home), "FLEXTOK_PROFILE": str(self.profile), "FLEXTOK_SET": "\n".join(SETS),
            "FLEXTOK_WORKSPACE": self.workspace.root, **server.environment,
        }  # fmt: skip
        asked = COMPOSE["x-dagster"]["environment"]
        assert own.keys() <= asked.keys()
        fixed = {name: value for name, value in asked.items() if "${" not in value}
        self.environment = {**os.environ, **fixed, **own}
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, *services: str) -> None:
        for service in services:
            program, *arguments = [self._here.get(word, word) for word in COMPOSE["services"][service]["entrypoint"]]
            command = [str(Path(sys.executable).with_name(program)), *arguments]
            self._running.append((service, subprocess.Popen(command, env=self.environment)))

    def is_healthy(self, service: str) -> bool:
        """By the compose file's own question."""
        words = COMPOSE["services"][service]["healthcheck"]["test"][1:]
        program, *arguments = [self._here.get(word, word) for word in words]
        asked = subprocess.run(
            [str(Path(sys.executable).with_name(program)), *arguments],
            env=self.environment,
            capture_output=True,
            check=False,
        )
        return asked.returncode == 0

    def run_processes(self) -> list[psutil.Process]:
        """Those of runs at work."""
        (code,) = (process for service, process in self._running if service == "code")
        found = []
        for child in psutil.Process(code.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # ended, or about to
                if "multiprocessing.spawn" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def kill(self, service: str) -> None:
        for name, process in self._running:
            if name == service:
                process.kill()
                process.wait()

    def end(self) -> None:
        for _, process in self._running:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    with postgres() as server:
        deployment = Deployment(tmp_path, server)
        for name, value in deployment.environment.items():
            monkeypatch.setenv(name, value)
        try:
            yield deployment
        finally:
            deployment.end()


@pytest.mark.timeout(1800)
def test_kills_cost_no_result(deployment: Deployment, tmp_path: Path) -> None:
    """A tick launches a training. The daemon and the run's process are killed, the next attempt's process is told to end,
    under the third one Postgres goes away: in the end there is what an undisturbed training makes."""
    workspace = deployment.workspace.root
    arguments = "--profile", str(deployment.profile), "--workspace", workspace
    shards = Command("run", "--select", "+reference", *arguments, sets=SETS)
    assert shards.finish() == 0, shards.told
    shutil.copytree(f"{workspace}/corpora", tmp_path / "undisturbed" / "corpora")
    alone = Command("train", "vae", *arguments[:2], "--workspace", str(tmp_path / "undisturbed"), sets=SETS)
    assert alone.finish() == 0, alone.told
    deployment.start("code")
    wait_until(lambda: deployment.is_healthy("code"))
    deployment.start("webserver", "daemon")

    with deployment.workspace.instance() as instance:
        wait_until(lambda: steps_done(workspace, "vae") > 0, every_s=0.02)
        (first,) = instance.get_runs(dg.RunsFilter(tags={PROFILE_TAG: "smoke"}))
        assert {key.path[-1] for key in first.asset_selection or ()} == {"latents"}
        second = Command("daemon", "-w", str(deployment.locations), sets=())
        assert second.finish() == 1
        assert "expected no other `flextok ui` or daemon for " in second.told[-1], second.told
        deployment.kill("daemon")
        (process,) = deployment.run_processes()
        process.kill()
        deployment.start("daemon")

        attempt_at_work(deployment, instance, first, 2).terminate()
        attempt_at_work(deployment, instance, first, 3)
        deployment.server.stop()
        wait_until(lambda: not deployment.run_processes())  # it has ended meanwhile, and could tell nobody
        deployment.server.start()
        wait_until(lambda: attempts(instance, first)[-1] == "SUCCESS")
        assert attempts(instance, first)[:2] == ["FAILURE", "FAILURE"]
        latents = staleness.latest_record(instance, dg.AssetKey(["smoke", "latents"]), None)
    (expected,) = (tmp_path / "undisturbed" / "checkpoints" / "vae").glob("[!.]*")
    assert staleness.data_version(latents) == expected.name

    deployment.server.stop()
    status = Command("status", *arguments, sets=SETS)
    assert status.finish() == 1
    assert status.told[-1].startswith("error: expected an answer of the Postgres with Dagster's records, found: "), (
        status.told
    )
    assert "Traceback" not in "".join(status.told) and PASSWORD not in "".join(status.told)
    deployment.server.start()
    with deployment.workspace.instance() as instance:
        before = len(attempts(instance, first))
        wait_until(lambda: len(instance.get_runs(dg.RunsFilter(tags={PROFILE_TAG: "smoke"}))) > before)  # the next wave
        requested = [
            run.tags["dagster/run_key"]
            for run in instance.get_runs(dg.RunsFilter(tags={PROFILE_TAG: "smoke"}))
            if not run.parent_run_id
        ]
        assert len(set(requested)) == len(requested), "nothing is begun twice"


def attempt_at_work(
    deployment: Deployment, instance: dg.DagsterInstance, first: dg.DagsterRun, number: int
) -> psutil.Process:
    """The process of a run's attempt by its number, once it trains."""
    wait_until(lambda: len(found := attempts(instance, first)) == number and found[-1] == "STARTED")
    wait_until(lambda: steps_done(deployment.workspace.root, "vae") > 0 and len(deployment.run_processes()) == 1)
    return deployment.run_processes()[0]


def attempts(instance: dg.DagsterInstance, first: dg.DagsterRun) -> list[str]:
    """Statuses of a run and its retries, the first first."""
    again = instance.get_runs(dg.RunsFilter(tags={"dagster/root_run_id": first.run_id}))
    ids = [first.run_id, *(run.run_id for run in reversed(again))]
    return [run.status.value for run_id in ids if (run := instance.get_run_by_id(run_id))]
