"""What of a block's forward pass is computed again, and compiled blocks."""

from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from test_jobs import make_tokens
from test_parallel import KINDS, Objective, prior_objectives, tokenizer_objectives
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from train_toy import ToyConfig, ToyObjective, ToySource

from flextok.model.rng import SampleRng
from flextok.runtime.compute import ComputeConfig
from flextok.train import blocks
from flextok.train.blocks import prepare_blocks, trunk_blocks
from flextok.train.config import TrainConfig
from flextok.train.loop import train
from flextok.train.parallel import CPU, DistContext


class Counting(TorchDispatchMode):
    """Counts what is computed, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def counts_of(objective: Objective, checkpointing: str) -> Counter[str]:
    """Operations of a forward and backward pass."""
    objective.train()
    compute = ComputeConfig.model_validate({"activation_checkpointing": checkpointing})
    prepare_blocks(objective.model, compute, CPU)
    batch = objective.source.fetch(torch.arange(3).numpy())
    with Counting() as counting:
        objective(batch, SampleRng(0, range(3))).sum().backward()
    return counting.counts


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_computes_again_what_it_does_not_keep(kind: str, tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path, [1, 2, 3])
    found = {
        checkpointing: counts_of(tokenizer_objectives()[0] if kind == "tokenizer" else prior_objectives(tokens)[0], checkpointing)
        for checkpointing in ("none", "selective", "full")
    }  # fmt: skip
    none, selective, full = found["none"], found["selective"], found["full"]
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert none["mm"] == selective["mm"] < full["mm"]
    assert none[attention] == selective[attention] > 0 and full[attention] == 2 * none[attention]
    depth = 4 if kind == "tokenizer" else 2
    assert selective["silu"] == full["silu"] == none["silu"] + depth


class Residual(nn.Module):
    """A block: torch passes over modules of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x).tanh()


@pytest.mark.slow
def test_compiled_blocks_train_as_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And where there is no compiler, a line says so."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    config = TrainConfig(steps=4, batch_size=8, log_every=1, precision="float32")
    compute = ComputeConfig(compile=True)

    def losses(name: str, compute: ComputeConfig) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(OrderedDict({"blocks": nn.Sequential(Residual(), Residual()), "head": nn.Linear(8, 4)}))
        objective = ToyObjective(model, ToySource(ToyConfig()))
        rows = train(objective, config, DistContext(), str(tmp_path / name), compute=compute)
        return [value for _, name, value in rows if name == "train/loss"]

    def said() -> list[str]:
        return [record.message for record in caplog.records if record.name == blocks.logger.name]

    from torch._dynamo.utils import counters
    from torch._inductor import config as inductor

    plain = losses("plain", ComputeConfig())
    with inductor.patch({"cpp.cxx": (None, "/no/such/compiler")}):
        assert losses("without", compute) == plain
    (line,) = said()
    assert line.startswith("compute.compile: no compiler for cpu here, blocks run as they are (")
    counters.clear()
    assert losses("compiled", compute) == pytest.approx(plain, abs=1e-5)
    assert counters["stats"]["unique_graphs"] == 3  # what was tried, and two blocks
    assert len(said()) == 1


def test_blocks_are_those_that_are_trained() -> None:
    model = tokenizer_objectives()[0].model
    assert [type(block).__name__ for block in trunk_blocks(model)] == ["Block", "Block"] + ["ModulatedBlock"] * 2
    model.get_submodule("encoder").requires_grad_(False)
    assert [type(block).__name__ for block in trunk_blocks(model)] == ["ModulatedBlock"] * 2
