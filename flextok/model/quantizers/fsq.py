"""Quantizers: continuous codes to token ids and back. A new kind is a class here and its config in `config.py`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flextok.model.config import FSQConfig, QuantizerConfig

FSQ_MARGIN = 1e-3


class Quantized(NamedTuple):
    """Quantized codes [B,L,d] (float32, gradients pass straight through) and their ids, int64 [B,L]."""

    codes: Tensor
    ids: Tensor


class Quantizer(nn.Module):
    """Interface of a quantizer. With C > 1 codebooks, ids are [B,L,C]."""

    dim: int
    vocab_size: int
    codebooks: int

    def forward(self, z_BLd: Tensor) -> Quantized:
        """Quantize unbounded codes [B,L,d]."""
        raise NotImplementedError

    def codes(self, ids: Tensor) -> Tensor:
        """Codes [B,L,d] of ids, equal to those `forward` gave with them."""
        raise NotImplementedError


class FSQ(Quantizer):
    """Finite scalar quantization (Mentzer et al. 2023), in float32 always, dimension 0 fastest in the id."""

    codebooks = 1
    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig):
        super().__init__()
        self.dim = len(config.levels)
        self.vocab_size = math.prod(config.levels)
        basis = [math.prod(config.levels[:index]) for index in range(self.dim)]
        # on the CPU by name, so that a model laid out on the meta device has them too
        self.register_buffer("levels", torch.tensor(config.levels, device="cpu"), persistent=False)
        self.register_buffer("basis", torch.tensor(basis, device="cpu"), persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """z squashed to the span of its levels; an even count of levels is shifted by half a step."""
        half = (self.levels - 1) * (1 + FSQ_MARGIN) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(z.float() + torch.atanh(offset / half)) * half - offset

    def forward(self, z_BLd: Tensor) -> Quantized:
        """[..., d] -> codes [..., d] in [-1,1] and ids [...]."""
        half = self.levels // 2
        bounded = self.bound(z_BLd)
        rounded = bounded.detach().round()
        ids = ((rounded.long() + half) * self.basis).sum(dim=-1)
        return Quantized((bounded + (rounded - bounded).detach()) / half, ids)

    def codes(self, ids: Tensor) -> Tensor:
        """Ids [...] in 0..vocab_size-1 -> codes [..., d]."""
        half = self.levels // 2
        digits = ids[..., None] // self.basis % self.levels
        return (digits - half) / half


QUANTIZERS: dict[str, type[Quantizer]] = {"fsq": FSQ}


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that a recipe names."""
    return QUANTIZERS[config.kind](config)  # type: ignore[call-arg]
