"""The transformer blocks of a model, one by one: computed again in the backward pass, compiled."""

import functools
import logging
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from flextok.runtime.compute import ComputeConfig

logger = logging.getLogger(__name__)

KEPT_OPERATIONS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]
"""What selective checkpointing keeps: results of matrix products and of attention, which cost the most to make again."""


def trunk_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks that are trained: members of each list of modules called `blocks`."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "blocks":
            for block in module.children():
                if any(parameter.requires_grad for parameter in block.parameters()):
                    yield block


def prepare_blocks(model: nn.Module, compute: ComputeConfig, device: torch.device) -> None:
    """Have the blocks of `model` run as `compute` says: what is computed again, and whether they are compiled."""
    blocks = list(trunk_blocks(model))
    if compute.activation_checkpointing != "none":
        for block in blocks:
            _recompute(block, selective=compute.activation_checkpointing == "selective")
    if compute.compile and blocks and _can_compile(device):
        for block in blocks:
            block.compile()


def _recompute(block: nn.Module, selective: bool) -> None:
    """Have `block` keep its inputs only (or little more) for the backward pass, which computes the rest again."""
    contexts = functools.partial(create_selective_checkpoint_contexts, KEPT_OPERATIONS)
    has_draws = any(isinstance(part, nn.Dropout) and part.p > 0 for part in block.modules())
    # in the place of the method, since a module around the block would hide its class and rename its parameters
    block.forward = functools.partial(
        checkpoint,
        block.forward,
        use_reentrant=False,
        preserve_rng_state=has_draws,
        context_fn=contexts if selective else noop_context_fn,
    )


def _can_compile(device: torch.device) -> bool:
    """Whether torch finds a compiler for `device`; says so in a line where not."""
    try:
        torch.compile(torch.square)(torch.ones(2, device=device))
    except Exception as error:  # noqa: BLE001 - whatever a missing or broken compiler raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logger.warning("compute.compile: no compiler for %s here, blocks run as they are (%s)", device.type, reason)
        return False
    return True
