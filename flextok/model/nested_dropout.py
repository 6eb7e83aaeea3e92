"""Nested dropout: how many tokens an image keeps in training."""

import torch
from torch import Tensor

from flextok.model.config import KeepMode


def sample_keep(mode: KeepMode, num_tokens: int, u_B: Tensor) -> Tensor:
    """Kept tokens of each image, int64 [B] in 1..num_tokens, from uniform draws `u_B` in [0,1).

    `uniform`: 1..L alike; `pow2`: 1, 2, 4, ..., L alike; `uniform_pow2`: uniform, rounded up to one of those;
    `inverse_pow2`: 1, 2, 4, ..., L, each as often as 1/K says, for short prefixes, which leave most to the decoder.
    """
    options = nested_lengths(num_tokens, u_B.device)
    if mode == "inverse_pow2":
        ends = options.double().reciprocal().cumsum(0)
        return options[torch.searchsorted(ends, u_B.double() * ends[-1], right=True)]
    if mode == "pow2":
        return options[(u_B.double() * len(options)).long().clamp_(max=len(options) - 1)]
    keep = (u_B.double() * num_tokens).long().clamp_(max=num_tokens - 1) + 1
    if mode == "uniform":
        return keep
    return options[torch.searchsorted(options, keep)]


def nested_lengths(num_tokens: int, device: torch.device | None = None) -> Tensor:
    """1, 2, 4, ... below `num_tokens`, then `num_tokens` itself."""
    lengths = [1 << power for power in range(num_tokens.bit_length()) if 1 << power < num_tokens]
    return torch.tensor([*lengths, num_tokens], device=device)
