"""Finite scalar quantization."""

import math

import torch
from torch import Tensor

from flextok.model.quantizers.base import Quantized, Quantizer
from flextok.model.quantizers.config import FSQConfig

FSQ_MARGIN = 1e-3


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
        return Quantized((bounded + (rounded - bounded).detach()) / half, ids, {})

    def codes(self, ids: Tensor) -> Tensor:
        """Ids [...] in 0..vocab_size-1 -> codes [..., d]."""
        half = self.levels // 2
        digits = ids[..., None] // self.basis % self.levels
        return (digits - half) / half
