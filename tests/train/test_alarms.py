"""Alarms of a training and steps that are left out, with faults that really happen."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saved_states import load_latest_state
from test_parallel import Crops
from torch import nn
from train_toy import ToyConfig, ToyObjective, ToySource, make_objective

from flextok.config import parse_config
from flextok.errors import FlextokError
from flextok.model.rng import SampleRng
from flextok.model.tokenizer import Tokenizer
from flextok.train.alarms import Alarms
from flextok.train.autoencoder import AutoencoderObjective
from flextok.train.buffers import LearnedBuffers
from flextok.train.config import DecoderOnlyConfig, OptimizerConfig, TrainConfig
from flextok.train.history import History
from flextok.train.loop import StopTraining, train
from flextok.train.objective import Batch
from flextok.train.parallel import DistContext
from flextok.train.sinks.base import HistoryRow
from flextok.train.spikes import FEWEST, MOST_IN_A_ROW, WINDOW, SpikeGuard
from flextok.train.tokenizer import TokenizerObjective
from pipelines.recipe import load_recipe

CONFIG = TrainConfig(
    steps=80, batch_size=8, optimizer=OptimizerConfig(lr=0.01, warmup_steps=3), precision="float32",
    checkpoint_every=30, log_every=10,
)  # fmt: skip
GUARDED = CONFIG.model_copy(update={"skip_spikes": 8.0})


def weights(objective: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in objective.model.parameters()])


def alarms_in(rows: Sequence[HistoryRow]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for step, name, _ in rows:
        if name.startswith("alarm/"):
            found.setdefault(name.removeprefix("alarm/"), []).append(step)
    return found


def after_step(step: int, config: TrainConfig, toy: ToyConfig, run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the state after a step."""

    def stop(done: int, note: str) -> None:
        if done == step:
            raise StopTraining

    with pytest.raises(StopTraining):
        train(make_objective(toy), config, DistContext(), str(run), on_progress=stop)
    state = load_latest_state(str(run))
    assert state is not None and state.step == step
    return state.tensors


@pytest.mark.parametrize("fault", ["poison_at", "spike_at"])
def test_a_step_that_is_left_out_changes_nothing(fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy = ToyConfig(**{fault: 8 * 60 + 3})
    before, after = (after_step(step, GUARDED, toy, tmp_path / str(step)) for step in (60, 61))
    kept = [name for name in before if not name.startswith("guard.")]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert any(name.startswith("average.") for name in kept) and any(name.startswith("exp_avg.") for name in kept)
    (line,) = {record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING}
    assert line.startswith("step 61: this step was left out: its gradient") and "lower train.optimizer.lr" in line


@pytest.mark.parametrize("fault", ["poison_at", "spike_at"])
def test_a_guarded_run_goes_on_and_records_what_it_left_out(fault: str, tmp_path: Path) -> None:
    guarded, clean = make_objective(ToyConfig(**{fault: 8 * 59 + 3})), make_objective()  # at a row of the history
    rows = train(guarded, GUARDED, DistContext(), str(tmp_path / "guarded"))
    losses = {name: value for step, name, value in train(clean, CONFIG, DistContext(), str(tmp_path / "clean"))}
    assert alarms_in(rows) == {"skipped_step": [60]}
    found = {name: value for step, name, value in rows}
    assert found["train/loss"] == pytest.approx(losses["train/loss"], rel=0.1)
    assert all(np.isfinite(value) for _, _, value in rows)


def test_without_faults_a_guard_changes_nothing(tmp_path: Path) -> None:
    guarded, plain = make_objective(), make_objective()
    train(guarded, GUARDED, DistContext(), str(tmp_path / "guarded"))
    train(plain, CONFIG, DistContext(), str(tmp_path / "plain"))
    assert torch.equal(weights(guarded), weights(plain))


def test_a_guarded_run_resumes_with_the_norms_it_has_seen(tmp_path: Path) -> None:
    toy = ToyConfig(spike_at=8 * 60 + 3)
    straight, resumed = make_objective(toy), make_objective(toy)
    train(straight, GUARDED, DistContext(), str(tmp_path / "straight"))
    after_step(58, GUARDED, toy, tmp_path / "run")
    rows = train(resumed, GUARDED, DistContext(), str(tmp_path / "run"))
    assert alarms_in(rows) == {"skipped_step": [61]}
    assert torch.equal(weights(resumed), weights(straight))


def test_a_loss_that_is_not_finite_keeps_the_last_state_and_another_setting_goes_on_from_it(tmp_path: Path) -> None:
    toy = ToyConfig(poison_at=8 * 62)
    with pytest.raises(FlextokError) as error:
        train(make_objective(toy), CONFIG, DistContext(), str(tmp_path))
    assert "states from before are kept; lower train.optimizer.lr" in str(error.value)
    state = load_latest_state(str(tmp_path))
    assert state is not None and state.step == 60
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())
    seen: list[int] = []
    resumed = make_objective(toy)
    train(resumed, GUARDED, DistContext(), str(tmp_path), on_progress=lambda step, note: seen.append(step))
    assert seen[0] == 60 and weights(resumed).isfinite().all()


def test_a_gradient_that_is_never_finite_ends_a_guarded_run(tmp_path: Path) -> None:
    class Spoiled(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x) * float("nan")

    objective = make_objective()
    objective.model = Spoiled(objective.model)
    with pytest.raises(FlextokError, match=f"found none in {MOST_IN_A_ROW} steps in a row"):
        train(objective, GUARDED, DistContext(), str(tmp_path))


def test_a_level_that_stays_is_taken_as_the_new_one() -> None:
    guard = SpikeGuard(5.0, torch.device("cpu"))
    noise = torch.rand(WINDOW + 50, generator=torch.Generator().manual_seed(0))
    assert not any(guard.refuses(1 + 0.1 * each) for each in noise)
    higher = [guard.refuses(10 + 0.1 * each) for each in noise[: MOST_IN_A_ROW + FEWEST + 5]]
    assert higher == [True] * MOST_IN_A_ROW + [False] * (FEWEST + 5)
    assert guard.refuses(torch.tensor(100.0)) and guard.refuses(torch.tensor(float("nan")))


def test_learned_buffers_of_a_step_left_out_are_as_before_it() -> None:
    model = nn.BatchNorm1d(3)
    buffers = LearnedBuffers(model, DistContext(), can_undo=True)
    before = {name: tensor.clone() for name, tensor in buffers.averaged().items()}
    with buffers.slice(1.0, is_last=True):
        model(torch.full((4, 3), float("nan")))
    buffers.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in buffers.averaged().items())


def told(
    values: dict[str, Sequence[float]],
    caplog: pytest.LogCaptureFixture,
    seconds: float = 20.0,
    turns: Collection[int] = (),
) -> list[str]:
    history = History()
    alarms = Alarms(history, turns, tells=True)
    for step, row in enumerate(zip(*values.values(), strict=True), 1):
        history.add(step, dict(zip(values, row, strict=True)))
        alarms.look(step, seconds)
    recorded = [step for _, steps in sorted(alarms_in(history.rows).items()) for step in steps]
    lines = [record.getMessage() for record in caplog.records]
    assert len(recorded) == len(lines) and not any("\n" in line for line in lines)
    return lines


def test_a_spike_of_the_loss_is_told_once_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    falling = [1 + 1 / step + 0.02 * (step % 3) for step in range(1, 30)]
    assert told({"train/loss": falling}, caplog) == []
    lines = told({"train/loss": [*falling, 2.5, 2.4, 1.05, 1.04, 2.6]}, caplog)
    assert [line.split(":")[0] for line in lines] == ["step 30", "step 34"]
    assert "train/loss is 2.5, 1.0" in lines[0] and "lower train.optimizer.lr or set train.skip_spikes" in lines[0]


def test_a_loss_that_the_recipe_makes_another_one_is_no_spike(caplog: pytest.LogCaptureFixture) -> None:
    falling = [1 + 1 / step + 0.02 * (step % 3) for step in range(1, 30)]
    larger = [2 * loss for loss in falling]
    (line,) = told({"train/loss": [*falling, *larger]}, caplog)
    assert line.startswith("step 30: train/loss is 4.0")
    caplog.clear()
    assert told({"train/loss": [*falling, *larger]}, caplog, turns=(29,)) == []
    (line,) = told({"train/loss": [*falling, *larger, 6.0]}, caplog, turns=(29,))
    assert line.startswith("step 59: train/loss is 6, 2.")


def test_turns_are_where_the_recipes_say_so() -> None:
    recipe = load_recipe("smoke", ["latents.train.discriminator={start_step: 300}"])
    tokenizer = recipe.tokenizer.train.model_copy(update={"decoder_only": DecoderOnlyConfig(from_step=1000)})
    flow = parse_config(
        type(tokenizer.decoder),
        {**tokenizer.decoder.model_dump(), "alignment": {"teacher": {"kind": "efficientnet_lite0"}, "until_step": 700}},
        "test",
    )
    made = Tokenizer.create(recipe.tokenizer_config(), 0)
    objective = TokenizerObjective(made, Crops(4), tokenizer.model_copy(update={"decoder": flow}))
    assert objective.turns() == {600, 700, 1000}
    assert recipe.latents.train is not None
    stage0 = AutoencoderObjective(recipe.latents.model.build(), Crops(4), recipe.latents.train)  # pyright: ignore[reportArgumentType]
    assert stage0.turns() == {300}


class Turning(ToyObjective):
    """Its loss is a hundred times as large from step 60 on."""

    def turns(self) -> set[int]:
        return {60}

    def forward(self, batch: Batch, rng: SampleRng) -> torch.Tensor:
        return super().forward(batch, rng) * (100 if rng.places[0] >= 8 * 60 else 1)


def test_a_guard_takes_what_the_recipe_makes_larger(tmp_path: Path) -> None:
    config = GUARDED.model_copy(update={"log_every": 5})
    plain = make_objective()
    turning = Turning(plain.model, ToySource(ToyConfig()))
    rows = train(turning, config, DistContext(), str(tmp_path / "turning"))
    assert alarms_in(rows) == {}
    turning = Turning(make_objective().model, ToySource(ToyConfig()))
    turning.turns = set  # as if it did not say so
    rows = train(turning, config, DistContext(), str(tmp_path / "untold"))
    assert alarms_in(rows)["skipped_step"][0] == 61


@pytest.mark.parametrize(
    ("perplexities", "expected"),
    [
        ([1.2, 3, 20, 60, 90], None),  # it begins with few
        ([1.2, 3, 20, 60, 90, 17], "step 6: the codebook collapses: its perplexity fell from 90 to 17;"),
        ([1.0, 1.0, 1.0, 1.0], "step 3: the codebook is not in use"),
    ],
)
def test_a_codebook_that_collapses(
    perplexities: list[float], expected: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    lines = told({"train/codebook_perplexity": perplexities}, caplog)
    assert [line.startswith(expected or "") for line in lines] == ([True] if expected else [])


def test_stalled_data_is_told_with_a_remedy(caplog: pytest.LogCaptureFixture) -> None:
    assert told({"machine/data_wait": [0.9]}, caplog, seconds=2.0) == []  # as short as the first rows of a toy
    (line,) = told({"machine/data_wait": [0.2, 0.7, 0.8]}, caplog)
    assert line.startswith("step 2: 70% of 20 s went by waiting for data; give each worker more CPUs")
