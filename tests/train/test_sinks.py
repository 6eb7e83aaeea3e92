"""Sinks of a training's history: what they get, and that none of them can hold up or end a training."""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from train_toy import ToyConfig, ToyJob, make_objective

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.runtime.compute import ComputeConfig
from flextok.train import history
from flextok.train.config import OptimizerConfig, TrainConfig
from flextok.train.history import open_sinks
from flextok.train.launch import run_training
from flextok.train.loop import train
from flextok.train.parallel import DistContext
from flextok.train.sinks.base import SINKS, HistoryRow, RunInfo, SinkSettings

HERE = ComputeConfig(train_workers=0)
TRAIN = {
    "steps": 12, "batch_size": 8, "optimizer": OptimizerConfig(warmup_steps=3), "precision": "float32",
    "checkpoint_every": 5, "log_every": 2,
}  # fmt: skip


class FullDiskSink(SinkSettings):
    """Writes to a device that has no room."""

    kind: Literal["full"] = "full"
    package: ClassVar[str] = "json"

    def open(self, run: RunInfo, first_step: int) -> "FullDiskSink":
        return self

    def write(self, rows: list[HistoryRow]) -> None:
        with open("/dev/full", "w") as file:
            file.write(str(rows))

    def close(self, is_finished: bool) -> None:
        raise AssertionError("a sink that failed is not asked again")


class HangingSink(FullDiskSink):
    """Waits for a server that never answers."""

    kind: Literal["hanging"] = "hanging"  # pyright: ignore[reportIncompatibleVariableOverride]
    answer: ClassVar[threading.Event] = threading.Event()

    def write(self, rows: list[HistoryRow]) -> None:
        self.answer.wait()

    def close(self, is_finished: bool) -> None:
        pass


class AbsentSink(FullDiskSink):
    """Needs a package that nobody has."""

    kind: Literal["absent"] = "absent"  # pyright: ignore[reportIncompatibleVariableOverride]
    package: ClassVar[str] = "no_such_package_anywhere"


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    members = (FullDiskSink, HangingSink, AbsentSink)
    for member in members:
        SINKS.register(member)
    yield
    HangingSink.answer.set()
    for member in members:
        SINKS.remove(member.model_fields["kind"].default)


def configured(*sinks: object) -> TrainConfig:
    return parse_config(TrainConfig, {**TRAIN, "sinks": list(sinks)}, "test")


def trained(config: TrainConfig, folder: Path, poison_at: int | None = None, stop_at: int = 0) -> list[HistoryRow]:
    def on_progress(step: int, note: str) -> None:
        if step == stop_at:
            raise RuntimeError("killed")

    info = RunInfo("toy", "ab" * 32, str(folder), config.model_dump(mode="json"))
    objective = make_objective(ToyConfig(poison_at=poison_at))
    with open_sinks(config.sinks, info) as sinks:
        told = on_progress if stop_at else lambda step, note: None
        return train(objective, config, DistContext(), str(folder / "run"), on_progress=told, sinks=sinks)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def by_name(rows: list[HistoryRow]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in rows:
        found.setdefault(name, []).append((step, pytest.approx(value, rel=1e-6)))
    return found


def test_tensorboard_has_each_row_once_also_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = configured("tensorboard")
    with pytest.raises(RuntimeError, match="killed"):
        trained(config, tmp_path, stop_at=9)  # after rows of steps 6 and 8, which the state of step 5 does not have
    rows = trained(config, tmp_path)
    found = scalars(tmp_path / ".logs/tensorboard/toy-abababababab")
    assert found == by_name(rows)
    assert [step for step, _ in found["train/loss"]] == [2, 4, 6, 8, 10, 12]


def test_wandb_keeps_a_run_offline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("wandb.sdk")
    trained(configured({"kind": "wandb", "offline": True}), tmp_path)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (file,) = (tmp_path / ".logs/wandb").glob("wandb/offline-run-*/run-*.wandb")
    assert b"train/loss" in file.read_bytes() and b"train/grad_norm" in file.read_bytes()


def test_mlflow_goes_on_in_the_run_of_a_killed_training(tmp_path: Path) -> None:
    pytest.importorskip("mlflow.tracking")
    config = configured("mlflow")
    with pytest.raises(RuntimeError, match="killed"):
        trained(config, tmp_path, stop_at=9)
    rows = trained(config, tmp_path)
    with sqlite3.connect(tmp_path / ".logs/mlflow/mlflow.db") as database:
        assert database.execute("select name, status from runs").fetchall() == [("toy-abababababab", "FINISHED")]
        found = database.execute(
            "select step, value from metrics where key = 'train/loss' order by timestamp"
        ).fetchall()
    assert sorted(dict(found).items()) == by_name(rows)["train/loss"]  # the last of two for a step, as MLflow shows it


@pytest.mark.parametrize(("sink", "told"), [("full", "No space left on device"), ("tensorboard", "File exists")])
def test_a_sink_that_fails_is_told_once_and_the_training_goes_on(
    sink: str, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".logs").mkdir()
    (tmp_path / ".logs/tensorboard").write_text("a file where the folder should be")
    expected, rows = trained(configured(), tmp_path / "plain"), trained(configured(sink), tmp_path)
    losses = [[row for row in found if row[1] == "train/loss"] for found in (expected, rows)]
    assert losses[0] == losses[1]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith(f"the sink '{sink}' failed and gets nothing more, the training goes on: ") and told in line
    assert "\n" not in line


def test_a_sink_that_hangs_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "CLOSE_S", 0.1)
    rows = trained(configured("hanging"), tmp_path)
    assert [step for step, name, _ in rows if name == "train/loss"] == [2, 4, 6, 8, 10, 12]
    assert "the sink 'hanging' did not end in time" in caplog.text


def test_a_sink_that_is_not_installed_ends_the_command_before_training_begins(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        run_training(ToyJob(configured("absent"), str(tmp_path)), HERE)
    assert error.value.exit_code == 2
    assert str(error.value) == (
        "expected the package no_such_package_anywhere for the sink 'absent', found none; "
        "pip install 'flextok-pipelines[absent]', or leave it out of train.sinks"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_sink_is_one_line() -> None:
    with pytest.raises(UsageError, match="found 'tensorbord'; the nearest is 'tensorboard'"):
        configured("tensorbord")
    with pytest.raises(UsageError, match="the nearest known key is"):
        configured({"kind": "wandb", "ofline": True})
