"""Published weights chosen by held-out losses, and trainings that end early by them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from train_toy import ToyConfig, ToyJob, ToySource, make_objective

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.model.checkpoint import SavedCheckpoint, read_checkpoint
from flextok.provenance import read_provenance
from flextok.runtime.compute import ComputeConfig
from flextok.train.config import TrainConfig
from flextok.train.launch import run_training
from flextok.train.loop import StopTraining, train
from flextok.train.objective import Objective
from flextok.train.parallel import DistContext
from flextok.train.sinks.base import HistoryRow

HERE = ComputeConfig(train_workers=0)
TRAIN: dict[str, Any] = {
    "steps": 60, "batch_size": 8, "optimizer": {"lr": 0.01, "warmup_steps": 3}, "precision": "float32",
    "checkpoint_every": 7, "log_every": 20, "validate_every": 5, "ema_decay": 0.5,
}  # fmt: skip


def configured(**settings: Any) -> TrainConfig:
    return parse_config(TrainConfig, {**TRAIN, **settings}, "test")


def objectives() -> tuple[Objective, Objective]:
    """A training on samples of one map, judged on those of another: what is learned is right until it is too much."""
    training, held_out = make_objective(ToyConfig(samples=20)), make_objective(ToyConfig(samples=40))
    source = held_out.source
    assert isinstance(source, ToySource)
    source.y *= 0.5  # overfitting made certain: their answers are half of the others'
    held_out.model = training.model
    return training, held_out


def trained(config: TrainConfig, run: Path, stop_at: int = 0) -> tuple[dict[str, torch.Tensor], list[HistoryRow]]:
    def on_progress(step: int, note: str) -> None:
        if step == stop_at:
            raise StopTraining

    training, held_out = objectives()
    told = on_progress if stop_at else lambda step, note: None
    rows = train(training, config, DistContext(), str(run), held_out, told)
    return {name: tensor.clone() for name, tensor in training.model.state_dict().items()}, rows


def held_out_losses(rows: list[HistoryRow]) -> dict[int, float]:
    return {step: value for step, name, value in rows if name == "val/loss"}


def held_out_loss(weights: dict[str, torch.Tensor], tmp_path: Path) -> float:
    """Of the given weights, by a training that leaves them as they are."""
    training, held_out = objectives()
    training.model.load_state_dict(weights)
    still = configured(steps=1, validate_every=1, optimizer={"lr": 1e-30, "weight_decay": 0.0}, ema_decay=0.0)
    return held_out_losses(train(training, still, DistContext(), str(tmp_path / "still"), held_out))[1]


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    found = held_out_losses(trained(configured(), tmp_path_factory.mktemp("plain"))[1])
    assert 5 < min(found, key=lambda step: found[step]) < 50  # else there would be nothing to choose
    return found


def test_the_best_validation_is_published(losses: dict[int, float], tmp_path: Path) -> None:
    weights, rows = trained(configured(keep_best={}), tmp_path / "run")
    assert held_out_losses(rows) == losses
    assert held_out_loss(weights, tmp_path) == pytest.approx(min(losses.values()), rel=1e-5)


@pytest.mark.parametrize("settings", [{"keep_best": {}}, {"keep_best": {}, "stop_early": {"patience": 2}}])
def test_a_stopped_run_publishes_what_an_undisturbed_one_does(settings: dict[str, Any], tmp_path: Path) -> None:
    config = configured(**settings)
    straight, expected = trained(config, tmp_path / "straight")
    best = min(held_out_losses(expected).items(), key=lambda item: item[1])[0]
    for stop_at in (best, best + 1, best + 6):
        run = tmp_path / f"stopped {stop_at}"
        with pytest.raises(StopTraining):
            trained(config, run, stop_at)
        resumed, rows = trained(config, run)
        assert held_out_losses(rows) == held_out_losses(expected)
        assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_a_training_ends_when_it_gets_no_better(losses: dict[int, float], tmp_path: Path) -> None:
    config = configured(stop_early={"patience": 3})
    weights, rows = trained(config, tmp_path / "run")
    best = min(losses, key=lambda step: losses[step])
    assert list(held_out_losses(rows)) == list(range(5, best + 16, 5))
    # A state of the very step that it ended after, as a kill before the checkpoint leaves it.
    with pytest.raises(StopTraining):
        trained(config, tmp_path / "killed", stop_at=best + 15)
    again, rows = trained(config, tmp_path / "killed")
    assert max(held_out_losses(rows)) == best + 15
    assert all(torch.equal(again[name], weights[name]) for name in weights)


class JudgedJob(ToyJob):
    """The toy as a job with held-out samples."""

    def build(self, world: DistContext) -> tuple[Objective, Objective | None]:
        return objectives()

    def save(self, objective: Objective, history: pa.Table) -> SavedCheckpoint:
        return super().save(objective, history)


def test_the_provenance_says_which_step_is_published(losses: dict[int, float], tmp_path: Path) -> None:
    made = run_training(JudgedJob(configured(keep_best={}, stop_early={"patience": 2}), str(tmp_path)), HERE)
    facts = read_provenance(made.url)["training"]
    best = min(losses, key=lambda step: losses[step])
    assert (facts["step"], facts["steps"], facts["metric"]) == (best, best + 10, "val/loss")
    assert (facts["workers"], facts["device"]) == (1, "cpu")
    assert facts["value"] == losses[best] and 0 < facts["device_hours"] < 1
    assert np.isfinite(next(iter(read_checkpoint(made.url).state.values())).numpy()).all()
    plain = read_provenance(run_training(JudgedJob(configured(), str(tmp_path / "plain")), HERE).url)["training"]
    assert (plain["step"], plain["steps"]) == (60, 60) and "metric" not in plain


def test_what_cannot_be_judged_is_one_line(tmp_path: Path) -> None:
    training, held_out = objectives()
    with pytest.raises(UsageError, match=r"set train\.validate_every"):
        train(training, configured(keep_best={}), DistContext(), str(tmp_path))
    with pytest.raises(UsageError, match="found 'val/los'; the nearest is 'val/loss'"):
        train(training, configured(keep_best={"metric": "val/los"}), DistContext(), str(tmp_path), held_out)
    with pytest.raises(UsageError, match="metric"):
        configured(keep_best={"metric": "train/loss"})


def test_how_it_is_validated_decides_only_what_is_judged() -> None:
    plain, judged = configured(), configured(keep_best={})
    assert plain.content() == configured(validate_every=7, validation_samples=3).content()
    assert judged.content() != configured(keep_best={}, validate_every=7).content()
    assert judged.content() != configured(keep_best={}, validation_samples=3).content()
    assert "keep_best" not in plain.content() and "stop_early" not in plain.content()
