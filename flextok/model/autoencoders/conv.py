"""The small convolutional autoencoder."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flextok.model.autoencoders.base import Autoencoder, Reconstructed, pixel_error
from flextok.model.autoencoders.config import AutoencoderSettings, ConvAutoencoderConfig, ConvTraining
from flextok.model.rng import SampleRng


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


class ConvAutoencoder(Autoencoder):
    """A small autoencoder on pixel-unshuffled images, for corpora without a pretrained one.

    After training, `measure` sets the mean and deviation that scale each latent channel to unit size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ConvAutoencoderConfig):
        super().__init__(config)
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

    def training_step(self, images_B3HW: Tensor, settings: ConvTraining, rng: SampleRng) -> Reconstructed:
        """`reconstruction`: error of the pixels, the latents blurred by `latent_noise` times a draw.

        Raw latents are held near unit size by a small penalty, which is what gives the noise its weight: the decoder
        learns to clean what comes out of a flow.
        """
        noise = rng.normal("noise", self.latent_shape(images_B3HW)).to(images_B3HW.device)
        raw = self._raw(images_B3HW)
        reconstructions = self._pixels(raw + settings.latent_noise * noise)
        error = pixel_error(reconstructions, images_B3HW, settings.pixel_loss, settings.gradient_weight)
        size_penalty = 1e-4 * raw.square().flatten(1).mean(dim=1)
        return Reconstructed(reconstructions, {"reconstruction": error + size_penalty})

    def last_layer(self) -> Tensor:
        """The last convolution's."""
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> AutoencoderSettings:
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
        return self.config

    def _raw(self, images_B3HW: Tensor) -> Tensor:
        return self.encoder(F.pixel_unshuffle(images_B3HW, self.factor))

    def _pixels(self, raw_BCHW: Tensor) -> Tensor:
        return F.pixel_shuffle(self.decoder(raw_BCHW), self.factor)
