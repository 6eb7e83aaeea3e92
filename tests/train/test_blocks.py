"""What of a block's forward pass is computed again, and compiled blocks."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_jobs import make_tokens
from test_parallel import KINDS, Objective, prior_objectives, tokenizer_objectives
from torch.utils._python_dispatch import TorchDispatchMode

from flextok.model.rng import SampleRng
from flextok.runtime.compute import ComputeConfig
from flextok.train.blocks import prepare_blocks, trunk_blocks
from flextok.train.parallel import CPU


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
    blocks = 4 if kind == "tokenizer" else 2
    assert selective["silu"] == full["silu"] == none["silu"] + blocks


def test_blocks_are_those_that_are_trained() -> None:
    model = tokenizer_objectives()[0].model
    assert [type(block).__name__ for block in trunk_blocks(model)] == ["Block", "Block"] + ["ModulatedBlock"] * 2
    model.get_submodule("encoder").requires_grad_(False)
    assert [type(block).__name__ for block in trunk_blocks(model)] == ["ModulatedBlock"] * 2
