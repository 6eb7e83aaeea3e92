"""The rectified-flow decoder."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flextok.errors import UsageError
from flextok.model import flow
from flextok.model.decoders.alignment import Projector, alignment_loss, no_alignment
from flextok.model.decoders.base import Decoder
from flextok.model.decoders.config import (
    AlignmentConfig,
    DecoderShape,
    FlowDecoderConfig,
    FlowTraining,
    SamplerConfig,
)
from flextok.model.nn.flops import block_flops, linear_flops
from flextok.model.nn.initialize import learned_vectors, xavier_linear, zero_linear
from flextok.model.nn.layers import ModulatedBlock, layer_norm
from flextok.model.nn.patching import PatchEmbedding, unpatchify
from flextok.model.rng import SampleRng

TIME_BASE = 256.0


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

    def __init__(self, config: FlowDecoderConfig, shape: DecoderShape):
        super().__init__()
        trunk = config.trunk
        self.patch_size, self.grid, self.hidden = shape.patch_size, shape.grid, trunk.hidden
        self.from_codes = nn.Linear(shape.code_dim, trunk.width)
        # as large as the embedded codes, so that the decoder can tell which token it reads
        self.register_positions = learned_vectors(shape.registers, trunk.width, std=0.2)
        self.mask_token = learned_vectors(trunk.width)
        self.null_token = learned_vectors(trunk.width)
        self.patches = PatchEmbedding(shape.channels, shape.patch_size, trunk.width, shape.grid, shape.posemb_scaling)
        self.time = TimeEmbedding(config)
        self.blocks = nn.ModuleList(ModulatedBlock(trunk) for _ in range(trunk.depth))
        self.head_adaln = nn.Linear(trunk.width, 2 * trunk.width)
        self.head = nn.Linear(trunk.width, shape.channels * shape.patch_size**2)
        for layer in (self.from_codes, self.patches.proj, self.time.fc1, self.time.fc2):
            xavier_linear(layer)
        zero_linear(self.head_adaln)
        zero_linear(self.head)
        self.projector: Projector | None = None  # in a training with alignment

    def begin_alignment(self, settings: AlignmentConfig, features: int, seed: int) -> None:
        """Add the projector to a teacher's `features` numbers; raises UsageError where there is no such layer."""
        if settings.layer > len(self.blocks):
            raise UsageError(
                f"expected train.decoder.alignment.layer in 1..{len(self.blocks)}, the decoder's blocks, found {settings.layer}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projector = Projector(self.head.in_features, settings.projector_width, features)

    def finish_training(self) -> None:
        """Without the projector."""
        self.projector = None

    def registers(self, codes_BLd: Tensor, keep_B: Tensor, drop_B: Tensor | None = None) -> Tensor:
        """Register inputs [B,L,D]: position k and later overwritten by the mask token, dropped images by the null one.

        Both are without a position embedding and stay attended, as in the published model.
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
        return self.velocity_and_patches(noised_BCHW, registers_BLD, modulations)[0]

    def velocity_and_patches(
        self, noised_BCHW: Tensor, registers_BLD: Tensor, modulations: Modulations, layer: int = 0
    ) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and the patches [B,P,D] behind the first `layer` blocks."""
        grid = self.patches.grid_of(noised_BCHW)
        patches, registers = self.patches(noised_BCHW), registers_BLD
        passed, final = patches, len(self.blocks) - 1
        for index, (block, modulation) in enumerate(zip(self.blocks, modulations.blocks, strict=True)):
            patches, registers = block(patches, registers, modulation, last=index == final)
            if index + 1 == layer:
                passed = patches
        out = self.head(torch.addcmul(modulations.shift, layer_norm(patches), modulations.scale))
        return unpatchify(out.float(), self.patch_size, grid), passed

    def training_step(
        self,
        z_BCHW: Tensor,
        codes_BLd: Tensor,
        keep_B: Tensor,
        drop_B: Tensor,
        settings: FlowTraining,
        rng: SampleRng,
        step: int,
        features_BPF: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`flow`: the velocity's error at a drawn noise level. `alignment`: with a teacher's features, where that is on;
        0 in training steps after it.
        """
        t_B = self.noise_levels(settings, rng, step)
        noise = rng.normal("noise", z_BCHW.shape[1:]).to(z_BCHW.device)
        alignment = settings.alignment if self.training else None
        error_B, patches_BPD = self._loss_and_patches(
            z_BCHW, codes_BLd, keep_B, drop_B, noise, t_B.to(z_BCHW.device), alignment.layer if alignment else 0
        )
        losses = {"flow": error_B}
        if alignment is not None and self.projector is not None:
            if features_BPF is not None:
                losses["alignment"] = alignment_loss(self.projector(patches_BPD), features_BPF)
            else:
                losses["alignment"] = no_alignment(self.projector, len(z_BCHW))
        return losses

    def noise_levels(self, settings: FlowTraining, rng: SampleRng, step: int) -> Tensor:
        """See `Decoder.noise_levels`."""
        t_B = flow.sample_sigma(settings.sigma, rng.uniform("time"), settings.mode_scale)
        return torch.where(_is_pure_noise(settings, rng, step), 1.0, t_B) if self.training else t_B

    def flops(self) -> float:
        """See `Decoder.flops`; the modulations of all blocks are made once for an image."""
        width, registers = self.head.in_features, len(self.register_positions)
        patches = self.patches.count
        length, blocks = patches + registers, len(self.blocks)
        trunk = (blocks - 1) * block_flops(width, self.hidden, length, length**2)
        trunk += block_flops(width, self.hidden, length, patches * length, rows=patches)
        time = linear_flops(1, self.time.size, width) + linear_flops(1, width, (1 + 12 * blocks + 2) * width)
        ends = linear_flops(registers, self.from_codes.in_features, width)
        return trunk + time + ends + 2 * linear_flops(patches, self.head.out_features, width)

    def loss(
        self, z_BCHW: Tensor, codes_BLd: Tensor, keep_B: Tensor, drop_B: Tensor, noise_BCHW: Tensor, t_B: Tensor
    ) -> Tensor:
        """Mean squared error of the velocity at time t, per image."""
        return self._loss_and_patches(z_BCHW, codes_BLd, keep_B, drop_B, noise_BCHW, t_B, 0)[0]

    def _loss_and_patches(
        self,
        z_BCHW: Tensor,
        codes_BLd: Tensor,
        keep_B: Tensor,
        drop_B: Tensor,
        noise_BCHW: Tensor,
        t_B: Tensor,
        layer: int,
    ) -> tuple[Tensor, Tensor]:
        registers = self.registers(codes_BLd, keep_B, drop_B)
        noised = flow.add_noise(z_BCHW, noise_BCHW, t_B)
        predicted, patches = self.velocity_and_patches(noised, registers, self.modulations(t_B), layer)
        return (predicted - flow.velocity_target(z_BCHW, noise_BCHW)).square().flatten(1).mean(dim=1), patches

    def sample(
        self,
        codes_BLd: Tensor,
        keep_B: Tensor,
        noise_BCHW: Tensor,
        sampler: SamplerConfig,
        guidance_at: Callable[[float], float] | None = None,
    ) -> Tensor:
        """Latents [B,C,H,W] by Euler steps from `noise_BCHW`.

        Registers and modulations are made once; the conditional and the unconditional half go through in one call.
        """
        registers = self.registers(codes_BLd, keep_B)
        times = flow.timesteps(sampler.steps)
        modulations = self.modulations(torch.tensor(times, device=noise_BCHW.device))
        if guidance_at is None and sampler.guidance == 1.0:
            return flow.euler_sample(lambda x, i: self(x, registers, modulations.at(i)), noise_BCHW, sampler.steps)

        both = torch.cat([registers, self.null_token.to(registers.dtype).expand_as(registers)])
        guide = flow.NormGuidance() if sampler.norm_guidance else flow.plain_guidance

        def velocity(x_BCHW: Tensor, index: int) -> Tensor:
            cond, uncond = self(torch.cat([x_BCHW, x_BCHW]), both, modulations.at(index)).chunk(2)
            scale = sampler.guidance if guidance_at is None else guidance_at(times[index])
            return guide(cond, uncond, scale)

        return flow.euler_sample(velocity, noise_BCHW, sampler.steps)

    def record(self, sampler: SamplerConfig) -> dict[str, Any]:
        """Solver, steps, guidance and noise."""
        variant = "adaptive projected" if sampler.norm_guidance else "classifier-free"
        return {
            "solver": "euler",
            "steps": sampler.steps,
            "decoder_guidance": sampler.guidance,
            "decoder_guidance_variant": variant if sampler.guidance != 1 else "none",
            "seed": sampler.seed,
            "noise": "a stream of its own for each image, from the seed and the image's key",
        }

    def activation_bytes(self, positions: int, number_bytes: int) -> int:
        """The SwiGLU's, of patches and registers, for an image with tokens and without."""
        sequence = positions // self.patch_size**2 + len(self.register_positions)
        return 2 * sequence * 2 * self.hidden * number_bytes


def _is_pure_noise(settings: FlowTraining, rng: SampleRng, step: int) -> Tensor:
    """Which images [B] get noise level 1.

    There the velocity is a plain regression of the latents on the tokens. Tokens that tell nothing yet are learned from
    it several times sooner than from all levels alike, most of which show the image to the decoder.
    """
    if step < settings.pure_noise_steps:
        return torch.ones(len(rng), dtype=torch.bool)
    return rng.uniform("pure noise") < settings.pure_noise_share
