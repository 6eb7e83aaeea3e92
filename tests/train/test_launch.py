"""Running jobs in this process and on Ray Train: kills, errors, requests that cannot be met."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
import train_toy
from saved_states import load_latest_state
from train_toy import ToyConfig, ToyJob

import flextok
from flextok import storage
from flextok.errors import FlextokError, UsageError
from flextok.model.checkpoint import read_checkpoint
from flextok.runtime import watch
from flextok.runtime.cluster import ensure_ray, stop_ray
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.lock import locked
from flextok.train.config import OptimizerConfig, TrainConfig
from flextok.train.job import run_url
from flextok.train.launch import run_training

CONFIG = TrainConfig(
    steps=20,
    batch_size=8,
    optimizer=OptimizerConfig(lr=0.01, warmup_steps=3),
    precision="float32",
    checkpoint_every=5,
    log_every=4,
)
HERE = ComputeConfig(train_workers=0)
ON_RAY = ComputeConfig(train_workers=2, num_cpus=2)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(train_toy)
    ensure_ray("local", num_cpus=2)
    yield
    stop_ray()


def files_under(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_a_job_in_this_process_leaves_a_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    result = run_training(ToyJob(CONFIG, str(tmp_path)), HERE)
    assert read_checkpoint(result.url).digest == result.digest
    assert result.metrics["train/loss"] > 0
    expected = ["config.yaml", "history.parquet", "model.safetensors", "provenance.json"]
    assert sorted(files_under(tmp_path)) == expected
    assert run_training(ToyJob(CONFIG, str(tmp_path)), HERE).digest == result.digest


def toy_command(parent: str, config: ToyConfig) -> tuple[list[str], dict[str, str]]:
    """A program that trains the toy into `parent` and prints its digest, and the environment it needs."""
    program = (
        "from train_toy import *; from flextok.train.config import *; from flextok.train.launch import run_training\n"
        "from flextok.runtime.compute import ComputeConfig\n"
        f"config = TrainConfig.model_validate({CONFIG.model_dump()!r})\n"
        f"job = ToyJob(config, {parent!r}, ToyConfig.model_validate({config.model_dump()!r}))\n"
        "print(run_training(job, ComputeConfig(train_workers=0)).digest)\n"
    )
    places = [Path(train_toy.__file__).parent, Path(flextok.__file__).parent.parent]
    return [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}


def test_a_killed_process_goes_on_to_the_same_digest(tmp_path: Path) -> None:
    straight = run_training(ToyJob(CONFIG, str(tmp_path / "straight")), HERE)
    config = ToyConfig(kill_at=13 * 8, kill_mark=str(tmp_path / "killed"))
    command, environment = toy_command(str(tmp_path / "run"), config)
    first = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert first.returncode == -signal.SIGKILL
    assert "state.json" in files_under(tmp_path / "run")
    second = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert second.stdout.strip() == straight.digest, second.stderr


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_equal_trainings_in_one_workspace_are_refused(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The second ends at once and names the first; when that is killed, the next resumes from its state."""
    parent = str(tmp_path / "run") if place == "disk" else request.getfixturevalue("s3_folder")
    straight = run_training(ToyJob(CONFIG, str(tmp_path / "straight")), HERE)
    command, environment = toy_command(parent, ToyConfig(hold_at=13 * 8))
    first = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "holding\n"
        again = ToyJob(CONFIG, parent)
        with pytest.raises(FlextokError, match=rf"another run is writing .*\(process {first.pid} on "):
            run_training(again, HERE)
        state = load_latest_state(run_url(again))
        assert state is not None and state.step in (5, 10)  # the last one may still be on its way
    finally:
        first.kill()
        first.communicate()
    assert run_training(again, HERE).digest == straight.digest
    assert storage.list_names(f"{parent}/.runs") == []


@pytest.mark.slow
def test_under_torchrun_every_member_tells_who_trains_already(tmp_path: Path) -> None:
    job = ToyJob(CONFIG, str(tmp_path / "run"))
    command, environment = toy_command(job.parent_url, ToyConfig())
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", *command
    ]  # fmt: skip
    with locked(run_url(job)):
        refused = subprocess.run(torchrun, check=False, env=environment, capture_output=True, text=True)
    assert refused.returncode != 0 and f"(process {os.getpid()} on " in refused.stderr
    done = subprocess.run(torchrun, check=True, env=environment, capture_output=True, text=True)
    digests = re.findall("[0-9a-f]{64}", done.stdout)  # two processes write at once
    assert len(digests) == 2 and len(set(digests)) == 1
    assert storage.list_names(f"{job.parent_url}/.runs") == []


@pytest.mark.slow
def test_ray_workers_go_on_after_one_is_killed(ray_session: None, tmp_path: Path) -> None:
    straight = run_training(ToyJob(CONFIG, str(tmp_path / "straight")), HERE)
    config = ToyConfig(kill_at=13 * 8 + 7, kill_mark=str(tmp_path / "killed"))
    result = run_training(ToyJob(CONFIG, str(tmp_path / "ray"), config), ON_RAY)
    assert (tmp_path / "killed").exists()
    found, expected = read_checkpoint(result.url).state, read_checkpoint(straight.url).state
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    assert result.metrics["train/loss"] == pytest.approx(straight.metrics["train/loss"], rel=1e-4)
    assert not (tmp_path / "ray" / ".runs").exists() or not files_under(tmp_path / "ray" / ".runs")


@pytest.mark.slow
def test_ray_workers_train_in_shards(ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also over a step that all leave out for a loss on one of them, of which the first worker tells."""
    guarded, spoiled = CONFIG.model_copy(update={"skip_spikes": 8.0}), ToyConfig(poison_at=10 * 8 + 5)
    straight = run_training(ToyJob(guarded, str(tmp_path / "straight"), spoiled), HERE)
    caplog.clear()
    config = guarded.model_copy(update={"gradient_accumulation_steps": 2})
    compute = ON_RAY.model_copy(update={"parallel": "fsdp", "activation_checkpointing": "full"})
    result = run_training(ToyJob(config, str(tmp_path / "ray"), spoiled), compute)
    assert "step 11: this step was left out: its gradient is not finite" in caplog.text
    found, expected = read_checkpoint(result.url).state, read_checkpoint(straight.url).state
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    assert result.metrics["train/loss"] == pytest.approx(straight.metrics["train/loss"], rel=1e-4)


@pytest.mark.slow
def test_an_error_on_one_ray_worker_is_raised_here_as_it_is(ray_session: None, tmp_path: Path) -> None:
    # Place 44 belongs to the second worker; the first waits for it in an all-reduce.
    with pytest.raises(FlextokError, match=r"^expected no place 44, found it$"):
        run_training(ToyJob(CONFIG, str(tmp_path), ToyConfig(fail_at=44)), ON_RAY)


@pytest.mark.slow
def test_a_training_says_what_it_waits_for(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "WAIT_S", 1.0)
    other = ray.remote(num_cpus=1)(type("Actor", (), {"ready": lambda self: None})).remote()
    ray.get(other.ready.remote())
    told = threading.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ray.kill(other)
            told.set()

    handler = Told(logging.WARNING)
    watch.logger.addHandler(handler)
    try:
        run_training(ToyJob(CONFIG, str(tmp_path)), ON_RAY)
    finally:
        watch.logger.removeHandler(handler)
    assert told.is_set()
    (line,) = [record.message for record in caplog.records if record.name == watch.logger.name]
    assert line.startswith("waiting for 1 CPU on one node for each of 2 training workers: the cluster has 1 node,")


@pytest.mark.parametrize("request_", [{"train_workers": 3}, {"train_workers": 1, "gpus_per_worker": 1.0}])
def test_more_than_the_cluster_has_is_refused_at_once(ray_session: None, request_: dict, tmp_path: Path) -> None:
    compute = ON_RAY.model_copy(update=request_)
    with pytest.raises(UsageError, match=r"room for 3 training workers|room for 1 training workers of 1 CPU and 1 GPU"):
        run_training(ToyJob(CONFIG, str(tmp_path)), compute)
