"""Random initial weights as in the published model."""

import torch
from torch import nn


def xavier_linear(layer: nn.Linear, blocks: int = 1) -> None:
    """Xavier-uniform weight, zero bias; a weight that stacks `blocks` matrices gets each its own draw."""
    for part in layer.weight.chunk(blocks, dim=0):
        nn.init.xavier_uniform_(part)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def zero_linear(layer: nn.Linear) -> None:
    """Weight and bias zero: the layer starts as silence."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def learned_vectors(*shape: int, std: float = 0.02) -> nn.Parameter:
    """A parameter of learned embeddings, normal with deviation `std` and cut off at two units."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=std))
