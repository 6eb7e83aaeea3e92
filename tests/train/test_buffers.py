"""Buffers learned beside the parameters: averaged, saved, resumed, and the same on any number of workers."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from saved_states import load_latest_state
from torch import Tensor, nn
from train_toy import ToyConfig, ToySource

from flextok.model.nn.collective import summed
from flextok.model.rng import SampleRng
from flextok.runtime.compute import ComputeConfig
from flextok.train.buffers import learned_buffers
from flextok.train.config import OptimizerConfig, TrainConfig
from flextok.train.loop import DEFAULT_COMPUTE, train
from flextok.train.objective import Batch, Objective
from flextok.train.parallel import DistContext
from flextok.train.sharding import is_sharded

CONFIG = TrainConfig(
    steps=20,
    batch_size=9,
    optimizer=OptimizerConfig(lr=0.01, warmup_steps=3),
    precision="float32",
    checkpoint_every=5,
    log_every=5,
    ema_decay=0.9,
    validate_every=20,
    validation_samples=11,
)


class Codebook(nn.Module):
    """Vector quantization whose codes are running means of the features nearest to them; no parameter at all."""

    shares: Tensor
    sums: Tensor
    steps: Tensor
    table: Tensor
    counts: Tensor
    counted: Tensor

    def __init__(self, num_codes: int, width: int, reassigns: bool, learns: str):
        super().__init__()
        self.reassigns, self.learns = reassigns, learns
        self.register_buffer("shares", torch.full((num_codes,), 1.0 / num_codes))
        self.register_buffer("sums", torch.randn(num_codes, width) / num_codes)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("table", torch.ones(3), persistent=False)
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("counted", self.sums.clone())

    def forward(self, x: Tensor) -> Tensor:
        codes = self.sums / self.shares[:, None].clamp(min=1e-6)
        one_hot = nn.functional.one_hot(torch.cdist(x.detach(), codes).argmin(1), len(codes)).float()
        if self.training:
            with torch.no_grad():
                self.steps += 1
                if self.learns in ("means", "both"):
                    self.learn_means(one_hot, x)
                if self.learns in ("sums", "both"):
                    # Over the whole batch, and a buffer that is no linear function of the others.
                    self.counts.lerp_(summed(one_hot.sum(0)), 0.2)
                    self.counted.copy_(summed(one_hot.T @ x) / self.counts[:, None])
        return x + (one_hot @ codes - x).detach()

    def learn_means(self, one_hot: Tensor, x: Tensor) -> None:
        shares, sums = one_hot.mean(0), one_hot.T @ x / len(x)
        if self.reassigns:
            self.shares, self.sums = (0.8 * self.shares + 0.2 * shares, 0.8 * self.sums + 0.2 * sums)
        else:
            self.shares.lerp_(shares, 0.2)
            self.sums.lerp_(sums, 0.2)


class Model(nn.Module):
    """An encoder and a head around the codebook, behind a frozen part with statistics of its own."""

    def __init__(self, reassigns: bool = False, learns: str = "both"):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.BatchNorm1d(8).requires_grad_(False).eval()
        nn.init.normal_(self.frozen.running_mean)  # pyright: ignore[reportArgumentType]
        self.scale = nn.BatchNorm1d(8)
        self.encoder, self.codebook, self.head = nn.Linear(8, 6), Codebook(5, 6, reassigns, learns), nn.Linear(6, 4)
        self.scale.eval()

    def train(self, mode: bool = True) -> "Model":
        super().train(mode)
        self.frozen.eval()
        self.scale.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.codebook(self.encoder(self.scale(self.frozen(x)))))


class CodebookObjective(Objective):
    def forward(self, batch: Batch, rng: SampleRng) -> Tensor:
        return (self.model(batch["x"]) - batch["y"]).square().mean(dim=1)


def objectives(reassigns: bool = False) -> tuple[CodebookObjective, CodebookObjective]:
    model = Model(reassigns)
    return CodebookObjective(model, ToySource(ToyConfig())), CodebookObjective(model, ToySource(ToyConfig(samples=11)))


class Stopped(Exception):
    """What a test raises to end a run as a kill would."""


def stop_at(step_to_stop: int):
    def on_progress(step: int, note: str) -> None:
        if step == step_to_stop:
            raise Stopped

    return on_progress


def state_of(objective: Objective) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}


def test_learned_are_the_stored_buffers_outside_frozen_parts() -> None:
    found = learned_buffers(Model())
    own = [f"codebook.{name}" for name in ("shares", "sums", "steps", "counts", "counted")]
    statistics = ["scale.running_mean", "scale.running_var", "scale.num_batches_tracked"]
    assert sorted(found) == sorted([*own, *statistics])
    assert learned_buffers(Model().requires_grad_(False)) == []


@pytest.mark.parametrize("reassigns", [False, True])
@pytest.mark.parametrize("stop_step", [5, 13])
def test_a_stopped_run_resumes_its_buffers_exactly(stop_step: int, reassigns: bool, tmp_path: Path) -> None:
    straight, validation = objectives(reassigns)
    start = state_of(straight)
    rows = train(straight, CONFIG, DistContext(), str(tmp_path / "straight"), validation)

    run = str(tmp_path / "stopped")
    with pytest.raises(Stopped):
        train(objectives(reassigns)[0], CONFIG, DistContext(), run, on_progress=stop_at(stop_step))
    state = load_latest_state(run)
    assert state is not None and state.tensors["model.codebook.steps"] == state.step
    resumed, validation = objectives(reassigns)
    rows_resumed = train(resumed, CONFIG, DistContext(), run, validation)
    expected, found = state_of(straight), state_of(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [row for row in rows if row[1] == "val/loss"] == [row for row in rows_resumed if row[1] == "val/loss"]
    frozen = [name for name in start if name.startswith(("frozen.", "scale.running"))]
    assert all(torch.equal(found[name], start[name]) for name in frozen)
    assert not torch.equal(found["codebook.sums"], start["codebook.sums"])


def test_what_is_saved_is_the_average_over_steps(tmp_path: Path) -> None:
    """Against a slow one: the buffer after each step, averaged as the weights are."""
    objective, _ = objectives()
    seen: list[Tensor] = []
    average = objective.model.codebook.sums.clone()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]

    def record(step: int, note: str) -> None:
        if step:
            seen.append(objective.model.codebook.sums.clone())  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]

    config = CONFIG.model_copy(update={"validate_every": None})
    train(objective, config, DistContext(), str(tmp_path), on_progress=record)
    for step, sums in enumerate(seen):
        decay = min(CONFIG.ema_decay, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * sums
    assert torch.allclose(state_of(objective)["codebook.sums"], average, atol=1e-6)
    assert not torch.equal(seen[-1], average)
    assert state_of(objective)["codebook.steps"] == 20


def _member(rank: int, size: int, folder: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    objective, validation = objectives()
    run = f"{folder}/run"
    world = DistContext(rank, size)
    if size > 1:  # a resume in the middle belongs to it
        try:
            train(objective, CONFIG, world, run, validation, stop_at(13))
        except Stopped:
            objective, validation = objectives()
    rows = train(objective, CONFIG, world, run, validation)
    losses = {name: value for _, name, value in rows if name in ("train/loss", "val/loss")}
    sliced = {
        learns: sliced_run(learns, 2, world, f"{folder}/{learns}", ComputeConfig.model_validate({"parallel": parallel}))
        for learns, parallel in (("means", "ddp"), ("sums", "fsdp"))
    }
    results[rank] = (losses, {name: tensor.numpy() for name, tensor in state_of(objective).items()}, sliced)
    dist.destroy_process_group()


def sliced_run(
    learns: str, slices: int, world: DistContext, run: str, compute: ComputeConfig = DEFAULT_COMPUTE
) -> dict[str, np.ndarray]:
    """What this member has whole of the toy, whose buffers learn from means or from sums over the batch."""
    objective = CodebookObjective(Model(learns=learns), ToySource(ToyConfig()))
    config = CONFIG.model_copy(update={"gradient_accumulation_steps": slices, "validate_every": None})
    train(objective, config, world, run, compute=compute)
    return {name: tensor.numpy() for name, tensor in state_of(objective).items() if not is_sharded(tensor)}


@pytest.mark.parametrize("learns", ["means", "sums"])
def test_slices_of_a_batch_change_buffers_once(learns: str, tmp_path: Path) -> None:
    whole = sliced_run(learns, 1, DistContext(), str(tmp_path / "whole"))
    slices = sliced_run(learns, 4, DistContext(), str(tmp_path / "slices"))
    assert all(slices[name] == pytest.approx(tensor, abs=1e-5) for name, tensor in whole.items())
    assert slices["codebook.steps"] == 20


def test_any_number_of_workers_learns_the_same_buffers(tmp_path: Path) -> None:
    # A batch of 9 over 2 workers: unequal parts, one mean.
    found = {}
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        with mp.get_context("spawn").Manager() as manager:
            results = manager.dict()
            mp.spawn(_member, args=(size, str(folder), results), nprocs=size)
            found[size] = dict(results)
    losses, expected, sliced = found[1][0]
    for rank in (0, 1):
        losses_two, state, sliced_two = found[2][rank]
        for learns, wanted in sliced.items():
            assert rank == 1 or sliced_two[learns].keys() == wanted.keys()
            assert {"codebook.sums", "codebook.counts", "codebook.counted"} < sliced_two[learns].keys()
            for name, tensor in sliced_two[learns].items():
                assert tensor == pytest.approx(wanted[name], abs=1e-5), (learns, name)
        if rank == 0:
            assert losses_two == pytest.approx(losses, rel=1e-4)
        for name, tensor in expected.items():
            assert state[name] == pytest.approx(tensor, abs=1e-5), name
            assert (state[name] == found[2][0][1][name]).all(), name
    for name in ("frozen.running_mean", "scale.running_mean", "scale.running_var"):
        assert (found[2][1][1][name] == expected[name]).all(), name
