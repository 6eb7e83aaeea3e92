"""The training loop: exact resume, the same numbers for any number of workers, what ends it."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from saved_states import load_latest_state
from torch import nn
from train_toy import ToyConfig, ToySource, make_objective

from flextok.config import parse_config
from flextok.errors import FlextokError, UsageError
from flextok.model.rng import SampleRng
from flextok.train.config import OptimizerConfig, TrainConfig
from flextok.train.history import headlines
from flextok.train.loop import train
from flextok.train.objective import Batch
from flextok.train.optimizer import Float32Muon, Optimizer, is_hidden_matrix, learning_rate
from flextok.train.parallel import DistContext
from flextok.train.sample_order import SampleOrder
from flextok.train.schedule import ConstantSchedule, WsdSchedule

OPTIMIZER = OptimizerConfig(lr=0.01, warmup_steps=3)
CONFIG = TrainConfig(
    steps=20, batch_size=8, optimizer=OPTIMIZER, precision="float32", checkpoint_every=5, log_every=4
)  # fmt: skip


def weights(objective) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in objective.model.parameters()])


def of_machine(row) -> bool:
    return row[1] == "train/images_per_s" or row[1].startswith("machine/")


def loss_history(rows) -> dict[int, float]:
    return {step: value for step, name, value in rows if name == "train/loss"}


class Stopped(Exception):
    """What a test raises to end a run as a kill would, between two steps."""


def stop_at(step_to_stop: int):
    def on_progress(step: int, note: str) -> None:
        if step == step_to_stop:
            raise Stopped

    return on_progress


def test_training_fits_and_keeps_a_history(tmp_path: Path) -> None:
    objective = make_objective()
    config = CONFIG.model_copy(update={"steps": 300, "ema_decay": 0.9})
    rows = train(objective, config, DistContext(), str(tmp_path))
    losses = loss_history(rows)
    assert losses[300] < 0.3 * losses[4]
    assert set(headlines(rows)) == {"train/loss", "train/lr", "train/grad_norm", "train/images_per_s"}
    assert not objective.training


MUON = CONFIG.model_copy(update={"optimizer": OPTIMIZER.model_copy(update={"kind": "muon"})})


@pytest.mark.parametrize(
    ("config", "stop_step", "in_memory"),
    [(CONFIG, 5, True), (CONFIG, 13, True), (CONFIG, 13, False), (MUON, 5, True), (MUON, 13, False)],
)
def test_a_stopped_run_goes_on_exactly(config: TrainConfig, stop_step: int, in_memory: bool, tmp_path: Path) -> None:
    straight = make_objective()
    train(straight, config, DistContext(), str(tmp_path / "straight"))

    run = str(tmp_path / "stopped")
    with pytest.raises(Stopped):
        train(make_objective(in_memory=in_memory), config, DistContext(), run, on_progress=stop_at(stop_step))
    seen = []
    resumed = make_objective(in_memory=in_memory)
    train(resumed, config, DistContext(), run, on_progress=lambda step, note: seen.append(step))
    assert seen[0] == stop_step // 5 * 5
    assert torch.equal(weights(resumed), weights(straight))


def test_muon_takes_the_matrices_of_blocks() -> None:
    """Its update is a (nearly) orthogonal matrix of AdamW's size, whatever the gradient's scale."""
    named = make_objective().trained()
    assert [name for name, p in named.items() if is_hidden_matrix(name, p)] == ["blocks.0.weight"]
    optimizer = Optimizer(named, MUON.optimizer)
    before = {name: p.detach().clone() for name, p in named.items()}
    torch.manual_seed(0)
    for p in named.values():
        p.grad = 1e-3 * torch.randn_like(p)
    optimizer.step(lr=0.5)
    assert all(p.grad is None for p in named.values())
    decayed = before["blocks.0.weight"] * (1 - 0.5 * MUON.optimizer.weight_decay)
    sizes = torch.linalg.svdvals(named["blocks.0.weight"].detach() - decayed) / (0.5 * 0.2 * math.sqrt(16))
    assert sizes.min() > 0.6 and sizes.max() < 1.3
    # AdamW's first step has the size of the learning rate in each place.
    assert torch.allclose((named["head.bias"].detach() - before["head.bias"]).abs(), torch.tensor(0.5), rtol=1e-3)


def test_a_state_cut_off_while_written_is_passed_over(tmp_path: Path) -> None:
    run = str(tmp_path)
    with pytest.raises(Stopped):
        train(make_objective(), CONFIG, DistContext(), run, on_progress=stop_at(7))
    # A kill between the tensors and the record that makes them count.
    (tmp_path / "step_000000010").mkdir()
    (tmp_path / "step_000000010" / "part-00000-half.safetensors").write_bytes(b"half")
    state = load_latest_state(run)
    assert state is not None and state.step == 5
    resumed, straight = make_objective(), make_objective()
    train(resumed, CONFIG, DistContext(), run)
    train(straight, CONFIG, DistContext(), str(tmp_path / "straight"))
    assert torch.equal(weights(resumed), weights(straight))


@pytest.mark.parametrize(("config", "atol"), [(CONFIG, 1e-6), (MUON, 5e-4)], ids=["adamw", "muon"])
def test_a_state_of_an_earlier_version_is_resumed(config: TrainConfig, atol: float, tmp_path: Path) -> None:
    """Written by commit c63be65 at step 10, beside the weights that its straight run came to.

    Muon computes in bfloat16, whose products differ between processors: by 1e-4 here between one with and one without
    instructions for it. Without the momentum of the state the weights are 7e-3 apart.
    """
    earlier = Path(__file__).parent.parent / "fixtures/training-states-c63be65" / config.optimizer.kind
    shutil.copytree(earlier, tmp_path / "run")
    seen: list[int] = []
    resumed = make_objective()
    train(resumed, config, DistContext(), str(tmp_path / "run"), on_progress=lambda step, note: seen.append(step))
    assert seen[0] == 10
    expected = safetensors.torch.load_file(earlier / "end.safetensors")
    for name, tensor in resumed.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=1e-5)


def test_a_run_goes_on_from_an_object_store(tmp_path: Path) -> None:
    run = f"memory://{tmp_path.name}/run"
    with pytest.raises(Stopped):
        train(make_objective(), CONFIG, DistContext(), run, on_progress=stop_at(13))
    state = load_latest_state(run)
    assert state is not None and state.step == 10
    resumed, straight = make_objective(), make_objective()
    train(resumed, CONFIG, DistContext(), run)
    train(straight, CONFIG, DistContext(), str(tmp_path / "straight"))
    assert torch.equal(weights(resumed), weights(straight))


def test_only_the_newest_state_is_kept(tmp_path: Path) -> None:
    train(make_objective(), CONFIG, DistContext(), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000015"]


def sliced(config: TrainConfig, slices: int) -> TrainConfig:
    return config.model_copy(update={"gradient_accumulation_steps": slices})


def validated_run(slices: int, world: DistContext, run: str) -> tuple[list[tuple[int, str, float]], np.ndarray]:
    objective, validation = make_objective(), make_objective(ToyConfig(samples=11))
    validation.model = objective.model
    config = sliced(CONFIG, slices).model_copy(update={"validate_every": 10})
    rows = train(objective, config, world, run, validation)
    return [row for row in rows if not of_machine(row)], weights(objective).numpy()


def _member(rank: int, size: int, folder: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    found = [validated_run(slices, DistContext(rank, size), f"{folder}/{slices}") for slices in (1, 2)]
    if rank == 0:
        results.put(found)
    dist.destroy_process_group()


def test_any_number_of_workers_and_slices_sees_the_same_numbers(tmp_path: Path) -> None:
    # A batch of 8 over 3 workers, or 2 slices of each: unequal parts, one mean.
    expected_rows, expected = validated_run(1, DistContext(), str(tmp_path / "one"))
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_member, args=(3, str(tmp_path), results), nprocs=3)
    for rows, found in [validated_run(3, DistContext(), str(tmp_path / "sliced")), *results.get()]:
        assert [row[:2] for row in rows] == [row[:2] for row in expected_rows]
        assert [row[2] for row in rows] == pytest.approx([row[2] for row in expected_rows], rel=1e-4)
        assert np.allclose(found, expected, atol=1e-5)


def test_a_run_goes_on_with_other_slices(tmp_path: Path) -> None:
    straight, resumed = make_objective(), make_objective()
    train(straight, CONFIG, DistContext(), str(tmp_path / "straight"))
    with pytest.raises(Stopped):
        train(make_objective(), CONFIG, DistContext(), str(tmp_path / "run"), on_progress=stop_at(13))
    train(resumed, sliced(CONFIG, 8), DistContext(), str(tmp_path / "run"))
    assert torch.allclose(weights(resumed), weights(straight), atol=1e-6)


def test_a_corpus_smaller_than_a_batch_is_repeated(tmp_path: Path) -> None:
    train(make_objective(ToyConfig(samples=3)), CONFIG, DistContext(), str(tmp_path))
    order = SampleOrder(0, 3)
    seen = np.concatenate([order.indices(range(step * 8, step * 8 + 8)) for step in range(3)])
    assert np.bincount(seen).tolist() == [8, 8, 8]
    assert all(sorted(seen[start : start + 3]) == [0, 1, 2] for start in range(0, 24, 3))


def test_epochs_are_shuffled_anew() -> None:
    order = SampleOrder(0, 50)
    first, second = order.indices(range(50)), order.indices(range(50, 100))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()
    across = order.indices(range(45, 55))
    assert across.tolist() == [*first[45:], *second[:5]]


def test_weights_say_how_often_a_sample_is_drawn() -> None:
    weights = np.array([0.3, 0.3, 1.0, 2.0, 1.4] * 40)
    order = SampleOrder(0, 200, weights)
    epochs = [order.indices(range(200 * epoch, 200 * epoch + 200)) for epoch in range(300)]
    counts = np.stack([np.bincount(epoch, minlength=200) for epoch in epochs])
    assert ((counts == np.floor(weights)) | (counts == np.ceil(weights))).all()
    # The mean of 300 draws of 0 or 1 more: a standard deviation of at most 0.5 / sqrt(300) = 0.03.
    assert np.abs(counts.mean(axis=0) - weights).max() < 0.15
    halves = [order.indices(range(start, start + 100)) for start in (300, 400)]
    assert np.concatenate(halves).tolist() == order.indices(range(300, 500)).tolist()
    assert epochs[0].tolist() != epochs[1].tolist()


def test_equal_weights_draw_permutations_as_no_weights_do() -> None:
    wanted = np.concatenate([np.random.default_rng((7, epoch)).permutation(20) for epoch in range(3)])
    for weights in (None, np.ones(20), np.full(20, 1.1)):
        assert SampleOrder(7, 20, weights).indices(range(60)).tolist() == wanted.tolist()


def test_training_draws_by_the_weights_of_its_source(tmp_path: Path) -> None:
    class Recorded(ToySource):
        def fetch(self, indices: np.ndarray) -> Batch:
            seen.extend(indices.tolist())
            return super().fetch(indices)

    seen: list[int] = []
    objective = make_objective(ToyConfig(samples=40))
    objective.source = Recorded(ToyConfig(samples=40))
    objective.source.weights = np.repeat([0.5, 1.5], 20)
    train(objective, CONFIG, DistContext(), str(tmp_path))
    counts = np.bincount(seen)  # 20 steps of 8: four epochs
    assert counts[:20].sum() == 40 and counts[20:].sum() == 120


def test_draws_belong_to_the_place_not_the_batch() -> None:
    whole, part = SampleRng(0, range(10, 20)), SampleRng(0, range(14, 16))
    assert torch.equal(whole.normal("noise", (2, 3))[4:6], part.normal("noise", (2, 3)))
    assert not torch.equal(whole.uniform("time"), whole.uniform("keep"))


@pytest.mark.parametrize("log_every", [4, 1000])
def test_a_loss_that_is_not_finite_ends_the_run_and_spoils_no_state(log_every: int, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"log_every": log_every})
    with pytest.raises(FlextokError, match="expected a finite loss"):
        train(make_objective(ToyConfig(poison_at=8 * 8)), config, DistContext(), str(tmp_path))
    state = load_latest_state(str(tmp_path))
    assert state is not None and state.step == 5
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())


def test_no_samples_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found none"):
        train(make_objective(ToyConfig(samples=0)), CONFIG, DistContext(), str(tmp_path))


def test_more_workers_than_samples_in_a_batch_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_size 8 for 9 workers"):
        train(make_objective(), CONFIG, DistContext(size=9), str(tmp_path))
    with pytest.raises(UsageError, match="batch_size 8 for 3 workers and gradient_accumulation_steps 3;"):
        train(make_objective(), sliced(CONFIG, 3), DistContext(size=3), str(tmp_path))


def test_learning_rate_warms_up_and_comes_down() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, final_lr_fraction=0.1)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10 + 50] == pytest.approx(0.1 + 0.9 * 0.5, abs=0.02)
    assert math.isfinite(learning_rate(config, 0, 1))


def test_the_cosine_is_to_the_bit_what_it_was_before_there_was_a_choice() -> None:
    config = OptimizerConfig(lr=3e-3, warmup_steps=7, final_lr_fraction=0.05)
    for step in range(7, 50):
        progress = (step - 7) / 42
        assert learning_rate(config, step, 50) == 3e-3 * (0.05 + (1 - 0.05) * 0.5 * (1 + math.cos(math.pi * progress)))
    assert "schedule" not in config.content()
    assert OptimizerConfig(schedule=ConstantSchedule()).content()["schedule"] == {"kind": "constant"}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"kind": "constant"}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"kind": "wsd", "decay_fraction": 0.4}, [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        # 1 - sqrt(1/4, 2/4, 3/4, 1) of the way from 1 to 0.2
        (
            {"kind": "wsd", "decay_fraction": 0.4, "shape": "one_minus_sqrt"},
            [0.5, 1, 1, 1, 1, 1, 0.6, 0.434315, 0.307180, 0.2],
        ),
        ({"kind": "wsd", "decay_fraction": 0.01}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.2]),
    ],
)
def test_schedules_by_hand(schedule: dict[str, Any], expected: list[float]) -> None:
    values = {"lr": 1.0, "warmup_steps": 2, "final_lr_fraction": 0.2, "schedule": schedule}
    config = parse_config(OptimizerConfig, values, "test")
    assert [learning_rate(config, step, 10) for step in range(10)] == pytest.approx(expected, abs=1e-6)


def test_a_run_follows_its_schedule(tmp_path: Path) -> None:
    optimizer = OPTIMIZER.model_copy(update={"schedule": WsdSchedule(decay_fraction=0.5)})
    config = CONFIG.model_copy(update={"optimizer": optimizer, "log_every": 1})
    rows = train(make_objective(), config, DistContext(), str(tmp_path))
    rates = [value for _, name, value in rows if name == "train/lr"]
    assert rates == [learning_rate(optimizer, step, 20) for step in range(20)]
    assert rates[3:10] == [0.01] * 7 and rates[-1] == pytest.approx(0.0005)


def test_bfloat16_trains_with_float32_weights(tmp_path: Path) -> None:
    objective = make_objective()
    rows = train(objective, CONFIG.model_copy(update={"precision": "bfloat16"}), DistContext(), str(tmp_path))
    exact = train(make_objective(), CONFIG, DistContext(), str(tmp_path / "exact"))
    assert weights(objective).dtype == torch.float32
    assert list(loss_history(rows).values()) == pytest.approx(list(loss_history(exact).values()), rel=0.05)


def test_muon_in_float32_is_muon():
    """Against torch's, whose iteration rounds to bfloat16: the same momentum, and steps that differ by that rounding."""
    config = OptimizerConfig(kind="muon", lr=0.1, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in ((24, 64), (64, 24), (32, 32))]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    options: dict[str, Any] = {"momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    steppers = [
        kind(matrices, lr=config.lr, weight_decay=config.weight_decay, **options)
        for kind, matrices in ((Float32Muon, ours), (torch.optim.Muon, theirs))
    ]
    for _ in range(3):
        for left, right in zip(ours, theirs, strict=True):
            left.grad = torch.randn(left.shape, generator=generator)
            right.grad = left.grad.clone()
        for stepper in steppers:
            stepper.step()
    for left, right, start in zip(ours, theirs, starts, strict=True):
        torch.testing.assert_close(
            *(s.state[m]["momentum_buffer"] for s, m in zip(steppers, (left, right), strict=True))
        )
        moved = (right - start).norm()
        assert (left - right).norm() < 0.02 * moved
