"""Stage 0: images to latents and back. A new kind is a class here and its config in `config.py`."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flextok.model.config import AutoencoderKLConfig, ConvLatentsConfig, LatentsConfig
from flextok.runtime import torchvision_compat  # noqa: F401  (diffusers imports torchvision)


class Latents(nn.Module):
    """Interface of a stage 0. Images are [B,3,H,W] in [-1,1]; latents [B,c,H/factor,W/factor], scaled to about 1."""

    factor: int
    channels: int
    sample_posterior = False

    def encode(self, images_B3HW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        """Scaled latents; `noise_BCHW` is the draw of a stage 0 that samples its posterior."""
        raise NotImplementedError

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Images of scaled latents, not clamped."""
        raise NotImplementedError


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after SiLU; the identity at first.

    Without normalization: over a whole picture it would let every object tint the flat areas around it.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,H,W]."""
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def _stack(in_channels: int, channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1),
        *(ResidualBlock(channels) for _ in range(blocks)),
        nn.SiLU(),
        nn.Conv2d(channels, out_channels, 3, padding=1),
    )


class ConvLatents(Latents):
    """A small autoencoder on pixel-unshuffled images, for corpora without a pretrained stage 0.

    After training, `measure_statistics` sets the mean and deviation that scale each latent channel to unit size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ConvLatentsConfig):
        super().__init__()
        self.factor = config.factor
        self.channels = config.latent_channels
        self.latent_noise = config.latent_noise
        cell = 3 * config.factor**2
        self.encoder = _stack(cell, config.channels, config.latent_channels, config.blocks)
        self.decoder = _stack(config.latent_channels, config.channels, cell, config.blocks)
        self.register_buffer("mean", torch.zeros(config.latent_channels))
        self.register_buffer("std", torch.ones(config.latent_channels))

    def encode(self, images_B3HW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        """[B,3,H,W] -> [B,c,H/factor,W/factor], each channel scaled; there is no posterior to draw from."""
        return (self._raw(images_B3HW) - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """[B,c,h,w] -> [B,3,h*factor,w*factor]."""
        return self._pixels(z_BCHW * self.std.view(1, -1, 1, 1) + self.mean.view(1, -1, 1, 1))

    def reconstruction_loss(self, images_B3HW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        """Training loss [B]: mean absolute error, the latents blurred by `latent_noise` * noise.

        Absolute, because flat areas then become exact rather than nearly so. Raw latents are held near unit size by a
        small penalty, which is what gives the noise its weight: the decoder learns to clean what comes out of a flow.
        """
        raw = self._raw(images_B3HW)
        blurred = raw if noise_BCHW is None else raw + self.latent_noise * noise_BCHW
        error = (self._pixels(blurred) - images_B3HW).flatten(1)
        size_penalty = 1e-4 * raw.square().flatten(1).mean(dim=1)
        return error.abs().mean(dim=1) + size_penalty

    @torch.no_grad()
    def measure_statistics(self, batches: Iterable[Tensor]) -> None:
        """Set `mean` and `std` from batches of training images."""
        count = 0
        total = torch.zeros(self.channels, dtype=torch.float64, device=self.mean.device)
        squares = torch.zeros_like(total)
        for images in batches:
            raw = self._raw(images.to(self.mean.device)).double()
            count += raw.numel() // self.channels
            total += raw.sum(dim=(0, 2, 3))
            squares += raw.square().sum(dim=(0, 2, 3))
        if count == 0:
            raise ValueError("expected at least one batch of images to measure latents on, found none")
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=1e-12)
        self.mean.copy_(mean)
        self.std.copy_(variance.sqrt())

    def _raw(self, images_B3HW: Tensor) -> Tensor:
        return self.encoder(F.pixel_unshuffle(images_B3HW, self.factor))

    def _pixels(self, raw_BCHW: Tensor) -> Tensor:
        return F.pixel_shuffle(self.decoder(raw_BCHW), self.factor)


class AutoencoderKLLatents(Latents):
    """diffusers' AutoencoderKL, in float32 always, its latents times a scaling factor."""

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        blocks = len(config.block_out_channels)
        self.factor = config.factor
        self.channels = config.latent_channels
        self.scaling_factor = config.scaling_factor
        self.sample_posterior = config.sample_posterior
        # Any: diffusers' annotations call for tuples of length one and outputs without fields
        architecture: dict[str, Any] = {
            **config.model_dump(exclude={"kind", "scaling_factor", "sample_posterior"}),
            "down_block_types": ("DownEncoderBlock2D",) * blocks,
            "up_block_types": ("UpDecoderBlock2D",) * blocks,
        }
        self.vae: Any = AutoencoderKL(**architecture)

    def posterior(self, images_B3HW: Tensor) -> Any:
        """diffusers' DiagonalGaussianDistribution of unscaled latents."""
        with torch.autocast(images_B3HW.device.type, enabled=False):
            return self._vae_on(images_B3HW.device).encode(images_B3HW.float()).latent_dist

    def encode(self, images_B3HW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        """[B,3,H,W] -> scaled latents: the posterior's mean, plus its deviation times `noise_BCHW` where given."""
        posterior = self.posterior(images_B3HW)
        z = posterior.mean if noise_BCHW is None else posterior.mean + posterior.std * noise_BCHW
        return z * self.scaling_factor

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Scaled latents -> images [B,3,H,W]."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            return self._vae_on(z_BCHW.device).decode(z_BCHW.float() / self.scaling_factor).sample

    def _vae_on(self, device: torch.device) -> Any:
        """The autoencoder. On a CPU it takes one image at a time: activations of 32 MiB an image leave its caches."""
        self.vae.use_slicing = device.type == "cpu"
        return self.vae


LATENTS: dict[str, type[Latents]] = {"conv": ConvLatents, "autoencoder_kl": AutoencoderKLLatents}


def build_latents(config: LatentsConfig) -> Latents:
    """The stage 0 that a recipe names."""
    return LATENTS[config.kind](config)  # type: ignore[call-arg]
