"""Decoders: quantized codes to latents. A new kind is a class here and its config in `config.py`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flextok.model import flow
from flextok.model.config import FlowDecoderConfig, TokenizerConfig
from flextok.model.nn.initialize import learned_vectors, xavier_linear, zero_linear
from flextok.model.nn.layers import ModulatedBlock, layer_norm
from flextok.model.nn.patching import PatchEmbedding, unpatchify

TIME_BASE = 256.0


@dataclass(frozen=True)
class Sampling:
    """How latents are drawn: Euler steps, guidance scale (or a function of t), and which guidance rule."""

    steps: int = 25
    guidance: flow.Guidance = 7.5
    norm_guidance: bool = True


class Decoder(nn.Module):
    """Interface of a decoder."""

    def loss(
        self, z_BCHW: Tensor, codes_BLd: Tensor, keep_B: Tensor, drop_B: Tensor, noise_BCHW: Tensor, t_B: Tensor
    ) -> Tensor:
        """Training loss of each image, [B]."""
        raise NotImplementedError

    def sample(self, codes_BLd: Tensor, keep_B: Tensor, noise_BCHW: Tensor, sampling: Sampling) -> Tensor:
        """Latents [B,C,H,W] decoded from the first keep_B codes of each image."""
        raise NotImplementedError


def timestep_sinusoid(t: Tensor, size: int, max_timestep: float) -> Tensor:
    """[T] -> [T,size]: cosines, then sines; base period 256 and frequencies scaled by 1000/max_timestep."""
    half = size // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * ((1000.0 / max_timestep) * torch.exp(-math.log(TIME_BASE) * exponents))
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, size % 2))


class TimeEmbedding(nn.Module):
    """Sinusoid of t through a two-layer MLP."""

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        self.size = config.frequency_size
        self.max_timestep = config.max_timestep
        self.fc1 = nn.Linear(self.size, config.trunk.width)
        self.fc2 = nn.Linear(config.trunk.width, config.trunk.width)

    def forward(self, t: Tensor) -> Tensor:
        """[T] -> [T,D]."""
        return self.fc2(F.silu(self.fc1(timestep_sinusoid(t, self.size, self.max_timestep))))


@dataclass(frozen=True)
class Modulations:
    """All that a forward pass needs of its timesteps: per block [2,6,T,1,D], and the head's scale and shift."""

    blocks: list[Tensor]
    scale: Tensor
    shift: Tensor

    def at(self, index: int) -> "Modulations":
        """Those of one timestep, shared by every image."""
        one = slice(index, index + 1)
        return Modulations([block[:, :, one] for block in self.blocks], self.scale[one], self.shift[one])


class FlowDecoder(Decoder):
    """Rectified-flow decoder: predicts noise - data from noised patches, registers and the timestep."""

    def __init__(self, config: TokenizerConfig, code_dim: int):
        super().__init__()
        channels, trunk = config.latents.latent_channels, config.decoder.trunk
        self.patch_size = config.patch_size
        self.from_codes = nn.Linear(code_dim, trunk.width)
        # as large as the embedded codes, so that the decoder can tell which token it reads
        self.register_positions = learned_vectors(config.registers, trunk.width, std=0.2)
        self.mask_token = learned_vectors(trunk.width)
        self.null_token = learned_vectors(trunk.width)
        self.patches = PatchEmbedding(channels, self.patch_size, trunk.width, config.grid, config.posemb_scaling)
        self.time = TimeEmbedding(config.decoder)
        self.blocks = nn.ModuleList(ModulatedBlock(trunk) for _ in range(trunk.depth))
        self.head_adaln = nn.Linear(trunk.width, 2 * trunk.width)
        self.head = nn.Linear(trunk.width, channels * self.patch_size**2)
        for layer in (self.from_codes, self.patches.proj, self.time.fc1, self.time.fc2):
            xavier_linear(layer)
        zero_linear(self.head_adaln)
        zero_linear(self.head)

    def registers(self, codes_BLd: Tensor, keep_B: Tensor, drop_B: Tensor | None = None) -> Tensor:
        """Register inputs [B,L,D]: position k and later overwritten by the mask token, dropped images by the null one.

        Both stand without a position embedding and stay attended, as in the published model.
        """
        embedded = self.from_codes(codes_BLd) + self.register_positions
        kept = torch.arange(embedded.shape[1], device=embedded.device) < keep_B[:, None]
        registers = torch.where(kept[..., None], embedded, self.mask_token.to(embedded.dtype))
        if drop_B is None:
            return registers
        return torch.where(drop_B.view(-1, 1, 1), self.null_token.to(embedded.dtype), registers)

    def modulations(self, t: Tensor) -> Modulations:
        """Everything that depends on the timesteps [T] alone."""
        activated = F.silu(self.time(t))
        shift, scale = self.head_adaln(activated).float()[:, None].chunk(2, dim=-1)
        return Modulations(
            [block.modulation(activated) for block in cast(Iterable[ModulatedBlock], self.blocks)], 1 + scale, shift
        )

    def forward(self, noised_BCHW: Tensor, registers_BLD: Tensor, modulations: Modulations) -> Tensor:
        """Velocity [B,C,H,W] in float32; `modulations` has a timestep for each image, or one for all."""
        grid = self.patches.grid_of(noised_BCHW)
        patches, registers = self.patches(noised_BCHW), registers_BLD
        final = len(self.blocks) - 1
        for index, (block, modulation) in enumerate(zip(self.blocks, modulations.blocks, strict=True)):
            patches, registers = block(patches, registers, modulation, last=index == final)
        out = self.head(torch.addcmul(modulations.shift, layer_norm(patches), modulations.scale))
        return unpatchify(out.float(), self.patch_size, grid)

    def loss(
        self, z_BCHW: Tensor, codes_BLd: Tensor, keep_B: Tensor, drop_B: Tensor, noise_BCHW: Tensor, t_B: Tensor
    ) -> Tensor:
        """Mean squared error of the velocity at time t, per image."""
        registers = self.registers(codes_BLd, keep_B, drop_B)
        predicted = self(flow.add_noise(z_BCHW, noise_BCHW, t_B), registers, self.modulations(t_B))
        return (predicted - flow.velocity_target(z_BCHW, noise_BCHW)).square().flatten(1).mean(dim=1)

    def sample(self, codes_BLd: Tensor, keep_B: Tensor, noise_BCHW: Tensor, sampling: Sampling) -> Tensor:
        """Latents [B,C,H,W] by Euler steps from `noise_BCHW`.

        Registers and modulations are made once; the conditional and the unconditional half go through in one call.
        """
        registers = self.registers(codes_BLd, keep_B)
        times = flow.timesteps(sampling.steps)
        modulations = self.modulations(torch.tensor(times, device=noise_BCHW.device))
        if not callable(sampling.guidance) and sampling.guidance == 1.0:
            return flow.euler_sample(lambda x, i: self(x, registers, modulations.at(i)), noise_BCHW, sampling.steps)

        both = torch.cat([registers, self.null_token.to(registers.dtype).expand_as(registers)])
        guide = flow.NormGuidance() if sampling.norm_guidance else flow.plain_guidance

        def velocity(x_BCHW: Tensor, index: int) -> Tensor:
            cond, uncond = self(torch.cat([x_BCHW, x_BCHW]), both, modulations.at(index)).chunk(2)
            scale = sampling.guidance(times[index]) if callable(sampling.guidance) else sampling.guidance
            return guide(cond, uncond, scale)

        return flow.euler_sample(velocity, noise_BCHW, sampling.steps)


DECODERS: dict[str, type[FlowDecoder]] = {"flow": FlowDecoder}


def build_decoder(config: TokenizerConfig, code_dim: int) -> Decoder:
    """The decoder that a recipe names."""
    return DECODERS[config.decoder.kind](config, code_dim)
