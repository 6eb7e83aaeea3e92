"""Toy members of the tokenizer's registers, none of them in the library: each is what a file of its room would hold."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from flextok.model.autoencoders.base import Autoencoder, Reconstructed
from flextok.model.autoencoders.config import AUTOENCODERS, AutoencoderSettings, AutoencoderTraining
from flextok.model.decoders.base import Decoder
from flextok.model.decoders.config import DECODERS, DecoderSettings, DecoderShape, SamplerConfig
from flextok.model.nn.collective import summed
from flextok.model.quantizers.base import Quantized, Quantizer
from flextok.model.quantizers.config import QUANTIZERS, QuantizerSettings, QuantizerTraining
from flextok.model.rng import SampleRng


class EmaTraining(QuantizerTraining):
    kind: Literal["toy_ema"] = "toy_ema"
    decay: float = Field(default=0.9, ge=0, lt=1)


class EmaCodebookConfig(QuantizerSettings):
    training = EmaTraining

    kind: Literal["toy_ema"] = "toy_ema"
    vocab_size: int = Field(default=8, gt=0)
    dim: int = Field(default=4, gt=0)

    def build(self) -> Quantizer:
        return EmaCodebook(self)


class EmaCodebook(Quantizer):
    """Nearest of V codes, each the running mean of what was nearest to it."""

    codebooks = 1
    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, config: EmaCodebookConfig):
        super().__init__()
        self.dim, self.vocab_size = config.dim, config.vocab_size
        codebook = torch.randn(self.vocab_size, self.dim)
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.ones(self.vocab_size))
        self.register_buffer("sums", codebook.clone())

    def forward(self, z_BLd: Tensor) -> Quantized:
        assert z_BLd.dtype == torch.float32
        ids = torch.cdist(z_BLd.detach(), self.codebook.expand(len(z_BLd), -1, -1)).argmin(dim=-1)
        nearest = self.codebook[ids]
        commitment = (z_BLd - nearest).square().flatten(1).mean(dim=1)
        return Quantized(z_BLd + (nearest - z_BLd).detach(), ids, {"commitment": commitment})

    def training_step(self, z_BLd: Tensor, settings: EmaTraining, rng: SampleRng) -> Quantized:
        quantized = self(z_BLd)
        if self.training:
            with torch.no_grad():
                chosen = F.one_hot(quantized.ids.flatten(), self.vocab_size).float()
                self.counts.lerp_(summed(chosen.sum(dim=0)), 1 - settings.decay)
                self.sums.lerp_(summed(chosen.T @ z_BLd.flatten(0, 1)), 1 - settings.decay)
                self.codebook.copy_(self.sums / self.counts.clamp(min=1e-3)[:, None])
        return quantized

    def codes(self, ids: Tensor) -> Tensor:
        return self.codebook[ids]


class BottleneckConfig(QuantizerSettings):
    kind: Literal["toy_bottleneck"] = "toy_bottleneck"
    width: int = Field(default=3, gt=0)

    def build(self) -> Quantizer:
        return Bottleneck(self)


class Bottleneck(Quantizer):
    """Continuous tokens: what is stored are the numbers themselves, trained under noise."""

    vocab_size = 0

    def __init__(self, config: BottleneckConfig):
        super().__init__()
        self.dim = self.codebooks = config.width

    def forward(self, z_BLd: Tensor) -> Quantized:
        return Quantized(z_BLd, z_BLd, {"size": z_BLd.square().flatten(1).mean(dim=1)})

    def training_step(self, z_BLd: Tensor, settings: Any, rng: SampleRng) -> Quantized:
        quantized = self(z_BLd)
        noise = rng.normal("bottleneck", z_BLd.shape[1:]).to(z_BLd.device)
        return quantized._replace(codes=quantized.codes + 0.1 * noise)

    def codes(self, ids: Tensor) -> Tensor:
        return ids


class RegressionConfig(DecoderSettings):
    kind: Literal["toy_regression"] = "toy_regression"

    def build(self, shape: DecoderShape) -> Decoder:
        return Regression(shape)


class Regression(Decoder):
    """Latents as a linear map of the codes: no noise, no time, no guidance."""

    def __init__(self, shape: DecoderShape):
        super().__init__()
        self.shape = (shape.channels, *(side * shape.patch_size for side in shape.grid))
        channels, rows, columns = self.shape
        self.linear = nn.Linear(shape.registers * shape.code_dim, channels * rows * columns)

    def forward(self, codes_BLd: Tensor, keep_B: Tensor) -> Tensor:
        kept = torch.arange(codes_BLd.shape[1], device=codes_BLd.device) < keep_B[:, None]
        return self.linear((codes_BLd * kept[..., None]).flatten(1)).float().unflatten(1, self.shape)

    def training_step(
        self,
        z_BCHW: Tensor,
        codes_BLd: Tensor,
        keep_B: Tensor,
        drop_B: Tensor,
        settings: Any,
        rng: SampleRng,
        step: int,
    ) -> dict[str, Tensor]:
        error = (self(codes_BLd, torch.where(drop_B, 0, keep_B)) - z_BCHW).square()
        return {"mse": error.flatten(1).mean(dim=1)}

    def sample(
        self, codes_BLd: Tensor, keep_B: Tensor, noise_BCHW: Tensor, sampler: SamplerConfig, guidance_at: Any = None
    ) -> Tensor:
        assert noise_BCHW.shape[1:] == self.shape
        return self(codes_BLd, keep_B)


class LinearTraining(AutoencoderTraining):
    kind: Literal["toy_linear"] = "toy_linear"
    blur: float = 0.0


class LinearConfig(AutoencoderSettings):
    training = LinearTraining

    kind: Literal["toy_linear"] = "toy_linear"
    latent_channels: int = 4
    factor: int = 4
    scale: float = 1.0

    def build(self) -> Autoencoder:
        return LinearAutoencoder(self)


class LinearAutoencoder(Autoencoder):
    """A linear map of square patches, and batch statistics which only its own training may move."""

    def __init__(self, config: LinearConfig):
        super().__init__(config)
        self.scale, cell = config.scale, 3 * config.factor**2
        self.down = nn.Conv2d(cell, config.latent_channels, 1)
        self.norm = nn.BatchNorm2d(config.latent_channels, affine=False, track_running_stats=True)
        self.up = nn.Conv2d(config.latent_channels, cell, 1)

    def encode(self, images_B3HW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        return self.norm(self.down(F.pixel_unshuffle(images_B3HW, self.factor))) * self.scale

    def decode(self, z_BCHW: Tensor) -> Tensor:
        return F.pixel_shuffle(self.up(z_BCHW / self.scale), self.factor)

    def training_step(self, images_B3HW: Tensor, settings: LinearTraining, rng: SampleRng) -> Reconstructed:
        z = self.encode(images_B3HW)
        noise = rng.normal("blur", z.shape[1:]).to(z.device)
        reconstructions = self.decode(z + settings.blur * noise)
        error = (reconstructions - images_B3HW).square()
        losses = {"mse": error.flatten(1).mean(dim=1), "size": 1e-3 * z.square().flatten(1).mean(dim=1)}
        return Reconstructed(reconstructions, losses)

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> LinearConfig:
        z = torch.cat([self.encode(images) for images in batches])
        assert isinstance(self.config, LinearConfig)
        return self.config.model_copy(update={"scale": self.scale / z.std().item()})


MEMBERS = (
    (QUANTIZERS, EmaCodebookConfig),
    (QUANTIZERS, BottleneckConfig),
    (DECODERS, RegressionConfig),
    (AUTOENCODERS, LinearConfig),
)
