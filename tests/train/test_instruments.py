"""What a training records of itself, each number against a slower way to it."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from train_toy import make_objective

from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig, FlowTraining
from flextok.model.nn.config import TrunkConfig
from flextok.model.nn.flops import TRAINING
from flextok.model.priors.base import Prior
from flextok.model.priors.config import AutoregressiveConfig, PriorConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.model.rng import SampleRng
from flextok.model.tokenizer import Tokenizer
from flextok.train.buckets import LossParts, keep_ends
from flextok.train.config import OptimizerConfig, TokenizerTrainConfig, TrainConfig
from flextok.train.loop import train
from flextok.train.machine import Machine
from flextok.train.objective import Batch
from flextok.train.parallel import DistContext
from flextok.train.probe import Probe, module_of
from flextok.train.tokenizer import TokenizerObjective

TRUNK = TrunkConfig(width=64, depth=3, head_dim=16)
TRAIN: dict[str, Any] = {
    "steps": 4, "batch_size": 8, "precision": "float32", "log_every": 2, "optimizer": OptimizerConfig(warmup_steps=2)
}  # fmt: skip


class Latents:
    """Random latents of 16 images."""

    in_memory = True
    weights = None
    windows = None

    def __init__(self) -> None:
        self._z = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self._z)

    def fetch(self, indices: np.ndarray) -> Batch:
        rows = torch.from_numpy(indices)
        return {"latents": self._z[rows], "rows": rows}


def objective(**train: Any) -> TokenizerObjective:
    config = TokenizerConfig(
        latents=ConvAutoencoderConfig(channels=8, blocks=1, latent_channels=4, factor=4),
        image_size=32, registers=6, encoder=TRUNK, patch_size=2, quantizer=FSQConfig(levels=(5, 5)),
        decoder=FlowDecoderConfig(trunk=TRUNK),
    )  # fmt: skip
    return TokenizerObjective(Tokenizer.create(config, seed=0), Latents(), TokenizerTrainConfig(**{**TRAIN, **train}))


def counted(run: Any) -> float:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_operations_by_formula_are_those_that_torch_counts() -> None:
    """But for pairs that a mask hides, which the formula leaves out as it is usual."""
    tokenizer = objective().model
    z, t = torch.randn(1, 4, 8, 8), torch.rand(1)
    assert counted(lambda: tokenizer.encoder(z)) == pytest.approx(tokenizer.encoder.flops(), rel=0.01)

    def decode() -> None:
        keep, drop = torch.tensor([6]), torch.tensor([False])
        tokenizer.decoder.loss(z, torch.randn(1, 6, 2), keep, drop, torch.randn_like(z), t)  # type: ignore[operator]

    assert counted(decode) == pytest.approx(tokenizer.decoder.flops(), rel=0.01)
    model = AutoregressiveConfig(width=64, depth=3, head_dim=16)
    prior = Prior.create(PriorConfig(model=model, num_tokens=16, vocab_size=100, num_classes=3, tokenizer="ab"), 0)
    ids, labels = torch.randint(100, (1, 16)), torch.tensor([1])
    assert counted(lambda: prior.loss(ids, labels)) == pytest.approx(prior.flops(), rel=0.05)
    # Forward and backward of a step; what is only rearranged has no products.
    whole = objective()
    batch = {name: tensor[:8] for name, tensor in whole.source.fetch(np.arange(16)).items()}
    step = counted(lambda: whole(batch, SampleRng(0, range(8))).sum().backward())
    assert step == pytest.approx(8 * TRAINING * (whole.flops() or 0), rel=0.03)


def test_buckets_of_tokens_kept() -> None:
    assert keep_ends(1) == [0, 1] and keep_ends(6) == [0, 1, 2, 4, 6] and keep_ends(16) == [0, 1, 2, 4, 8, 16]


def test_losses_by_noise_and_tokens_kept_are_means_of_samples() -> None:
    parts, generator = LossParts(16, torch.device("cpu")), torch.Generator().manual_seed(0)
    rows = []
    for _ in range(3):
        loss, t = torch.rand(40, generator=generator), torch.rand(40, generator=generator)
        t[:5] = 1.0
        keep, drop = torch.randint(1, 17, (40,), generator=generator), torch.rand(40, generator=generator) < 0.2
        parts.add(loss, keep, drop, t)
        rows += list(zip(loss.tolist(), keep.tolist(), drop.tolist(), t.tolist(), strict=True))

    def mean(chosen: Any) -> Any:
        return pytest.approx(np.mean([loss for loss, keep, drop, t in rows if chosen(keep, drop, t)]))

    names = {"0": (0, 0), "1": (1, 1), "2": (2, 2), "3-4": (3, 4), "5-8": (5, 8), "9-16": (9, 16)}
    expected = {
        **{
            f"loss_by_keep/{name}": mean(lambda keep, drop, t, ends=ends: ends[0] <= (0 if drop else keep) <= ends[1])
            for name, ends in names.items()
        },
        **{
            f"loss_by_noise/{n / 5:.1f}-{(n + 1) / 5:.1f}": mean(lambda keep, drop, t, n=n: n / 5 <= t < (n + 1) / 5)
            for n in range(5)
        },
        "loss_by_noise/1.0": mean(lambda keep, drop, t: t == 1),
    }
    assert parts.means(DistContext()) == expected
    assert parts.means(DistContext()) == {}


def test_a_tokenizer_records_its_losses_by_group_and_its_codebook(tmp_path: Path) -> None:
    train_config = {"decoder": FlowTraining(pure_noise_share=0.3), "log_every": 1, "steps": 1}
    one = objective(**train_config)
    batch = one.source.fetch(np.random.default_rng((0, 0)).permutation(16)[:8])  # of the first step
    ids = one.model.quantizer(one.model.encoder(batch["latents"])).ids
    values = {name: value for _, name, value in train(one, one.config, DistContext(), str(tmp_path))}
    shares = np.bincount(ids.flatten().numpy(), minlength=25) / ids.numel()
    assert values["train/codebook_usage"] == np.mean(shares > 0)
    assert values["train/codebook_perplexity"] == pytest.approx(np.exp(-sum(p * np.log(p) for p in shares if p)))
    by_keep = [value for name, value in values.items() if name.startswith("train/loss_by_keep/")]
    by_noise = {name: value for name, value in values.items() if name.startswith("train/loss_by_noise/")}
    assert min(by_keep) <= values["train/loss"] <= max(by_keep) and "train/loss_by_noise/1.0" in by_noise
    assert 0 < values["machine/mfu"] < 1 and values["machine/memory_gib"] > 0 and 0 <= values["machine/data_wait"] < 1


def test_held_out_losses_are_told_by_tokens_kept_and_noise(tmp_path: Path) -> None:
    one, held_out = objective(validate_every=2, validation_samples=16), objective()
    held_out.model = one.model
    rows = train(one, one.config, DistContext(), str(tmp_path), held_out)
    found = {name: value for step, name, value in rows if step == 4 and name.startswith("val/")}
    assert len([name for name in found if name.startswith("val/loss_by_keep/")]) >= 4
    assert "val/loss_by_noise/1.0" not in found
    held_out.eval()
    with torch.no_grad():  # as it is validated, but sample by sample
        rng = SampleRng(one.config.seed + (1 << 31), range(16))
        losses = held_out(held_out.source.fetch(np.arange(16)), rng)
    high = losses[rng.uniform("time") >= 0.8]
    assert found["val/loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found["val/loss_by_noise/0.8-1.0"] == pytest.approx(high.mean().item(), rel=1e-5)


def test_a_probe_sees_gradients_and_changes_by_module() -> None:
    assert [module_of(name) for name in ("encoder.blocks.3.attn.qkv.weight", "encoder.registers", "start")] == [
        "encoder.blocks", "encoder", "root"
    ]  # fmt: skip
    named = {"a.0.weight": nn.Parameter(torch.tensor([3.0, 4.0])), "b.bias": nn.Parameter(torch.tensor([1.0]))}
    named["a.0.weight"].grad, named["b.bias"].grad = torch.tensor([0.6, 0.8]), torch.tensor([2.0])
    probe = Probe()
    probe.before(named)
    with torch.no_grad():
        named["a.0.weight"] += 0.05
        named["b.bias"] *= 3
    probe.after(named)
    assert probe.values() == {
        "grad_norm/a": pytest.approx(1), "grad_norm/b": pytest.approx(2),
        "update_ratio/a": pytest.approx(0.05 * math.sqrt(2) / 5, rel=1e-5), "update_ratio/b": pytest.approx(2),
    }  # fmt: skip


def test_norms_of_modules_make_up_the_whole_and_leave_the_weights_alone(tmp_path: Path) -> None:
    config = TrainConfig(**{**TRAIN, "log_every": 1})
    probed, plain = make_objective(), make_objective()
    rows = train(probed, config, DistContext(), str(tmp_path / "probed"))
    train(plain, config.model_copy(update={"log_every": 100}), DistContext(), str(tmp_path / "plain"))
    last = {name: value for step, name, value in rows if step == 4}
    parts = [value for name, value in last.items() if name.startswith("train/grad_norm/")]
    assert len(parts) == 2 and math.hypot(*parts) == pytest.approx(last["train/grad_norm"], rel=1e-5)
    assert 1e-5 < last["train/update_ratio/head"] < 0.1
    assert all(map(torch.equal, probed.model.state_dict().values(), plain.model.state_dict().values()))


def test_waiting_for_data_is_told_apart_from_work() -> None:
    def batches() -> Iterator[int]:
        for batch in range(3):
            spin(0.02)
            yield batch

    def spin(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass

    machine = Machine(DistContext(), None)
    machine.begin(1.0)
    for _ in machine.waited_for(batches()):
        spin(0.02)
    row = machine.row(30, None)
    assert row["machine/data_wait"] == pytest.approx(0.5, abs=0.2)
    assert 0 < row["train/images_per_s"] <= 30 / 0.12
    assert 1.0 < row["machine/device_hours"] < 1.01 and "machine/mfu" not in row
    assert machine.row(1, None)["machine/data_wait"] == 0
