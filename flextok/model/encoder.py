"""The encoder: latents to a sequence of register outputs, of which no prefix depends on the rest."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flextok.model.config import TokenizerConfig
from flextok.model.nn.flops import block_flops, causal_pairs, linear_flops
from flextok.model.nn.initialize import learned_vectors, xavier_linear
from flextok.model.nn.layers import Block, layer_norm, matrices
from flextok.model.nn.patching import PatchEmbedding


@functools.lru_cache(maxsize=16)
def causal_last_mask(patches: int, registers: int, device: torch.device) -> Tensor:
    """Boolean [N,N], True where row may look at column: all see the patches, registers also earlier registers.

    Patches never see registers and register i never sees i+1, so a prefix of registers does not depend on the rest.
    """
    # kept for later calls, which may train even where this one runs in inference mode
    with torch.inference_mode(False):
        index = torch.arange(patches + registers, device=device)
        return (index[None] < patches) | (index[None] <= index[:, None])


class Encoder(nn.Module):
    """Patches and learned registers through a transformer; register outputs projected to the quantizer's width."""

    def __init__(self, config: TokenizerConfig, out_dim: int):
        super().__init__()
        trunk = config.encoder
        self.patch_size, self.hidden = config.patch_size, trunk.hidden
        self.patches = PatchEmbedding(
            config.latents.latent_channels, config.patch_size, trunk.width, config.grid, config.posemb_scaling
        )
        # well apart from the start: registers that what they read makes alike all learn the same token
        self.registers = learned_vectors(config.registers, trunk.width, std=0.5)
        self.blocks = nn.ModuleList(Block(trunk) for _ in range(trunk.depth))
        self.head = nn.Linear(trunk.width, out_dim)
        xavier_linear(self.patches.proj)
        # not zero, as in the published code: a quantizer fed with zeros gives every image the same tokens
        nn.init.normal_(self.head.weight, std=trunk.width**-0.5)
        nn.init.zeros_(self.head.bias)

    def embed(self, z_BCHW: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,P+L,D]: patches, then registers."""
        patches = self.patches(z_BCHW)
        return torch.cat([patches, self.registers.expand(patches.shape[0], -1, -1)], dim=1)

    def trunk(self, x_BND: Tensor) -> Tensor:
        """Embedded sequence -> register outputs [B,L,D]."""
        count = self.registers.shape[0]
        patches = x_BND.shape[1] - count
        mask = causal_last_mask(patches, count, x_BND.device)
        *blocks, last = self.blocks
        for block in blocks:
            x_BND = block(x_BND, mask, prefix=patches)
        return last(x_BND, mask, rows=slice(patches, None))

    def forward(self, z_BCHW: Tensor) -> Tensor:
        """Scaled latents [B,C,H,W] -> unquantized codes [B,L,d] in float32."""
        registers = self.trunk(self.embed(z_BCHW))
        # what is rounded next must not be rounded to bfloat16 first
        with torch.autocast(registers.device.type, enabled=False):
            return self.head(layer_norm(registers.float()))

    def flops(self) -> float:
        """Operations of the matrix products of a forward pass for an image of the training size."""
        width, registers, patches = self.head.in_features, len(self.registers), self.patches.count
        length, seen = patches + registers, registers * patches + causal_pairs(registers)
        trunk = (len(self.blocks) - 1) * block_flops(width, self.hidden, length, patches**2 + seen)
        trunk += block_flops(width, self.hidden, length, seen, rows=registers)
        inputs = linear_flops(patches, self.patches.proj.in_features, width)
        return trunk + inputs + linear_flops(registers, width, self.head.out_features)

    def half_precision_modules(self) -> Iterator[nn.Module]:
        """The modules whose weights may be rounded to bfloat16 for use."""
        return matrices(self)

    def activation_bytes(self, positions: int, number_bytes: int) -> int:
        """Bytes that an image's largest activation takes, its latents of `positions` = H*W."""
        sequence = positions // self.patch_size**2 + len(self.registers)
        return sequence * 2 * self.hidden * number_bytes
