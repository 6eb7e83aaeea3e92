"""What an autoencoder is: images to latents and back, the step before the tokens."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from flextok.errors import UsageError
from flextok.model.autoencoders.config import AutoencoderSettings, PixelLoss
from flextok.model.rng import SampleRng


class Reconstructed(NamedTuple):
    """What a training step of an autoencoder gives."""

    images_B3HW: Tensor
    """Its reconstructions, not clamped, with their gradient."""
    losses: dict[str, Tensor]
    """Losses of each image, [B], by name."""


def pixel_error(
    reconstructions_B3HW: Tensor, images_B3HW: Tensor, kind: PixelLoss, gradient_weight: float = 0.0
) -> Tensor:
    """[B]: the mean absolute (l1) or squared (l2) difference of each image.

    With `gradient_weight`, so many times that of their gradients is added: of the differences of pixels beside and below
    each other. (After the gradient difference loss of Mathieu et al. 2016, arXiv 1511.05440, which compares their sizes.)
    """
    error_B3HW = reconstructions_B3HW - images_B3HW
    size = torch.abs if kind == "l1" else torch.square
    error_B = size(error_B3HW).flatten(1).mean(dim=1)
    if gradient_weight == 0:
        return error_B
    gradients_B = sum(size(error_B3HW.diff(dim=dim)).flatten(1).mean(dim=1) for dim in (2, 3))
    return error_B + gradient_weight * gradients_B


class Autoencoder(nn.Module):
    """Interface of an autoencoder. Images are [B,3,H,W] in [-1,1]; latents [B,c,H/factor,W/factor], scaled to about 1.

    It also owns its training. Buffers that are not persistent must be made on the CPU by name, as a model is laid out on
    the meta device before it is loaded.
    """

    sample_posterior = False
    """Whether `encode` needs noise."""

    def __init__(self, config: AutoencoderSettings):
        super().__init__()
        self.config = config
        self.factor = config.factor
        self.channels = config.latent_channels

    def train(self, mode: bool = True) -> Self:
        """Training mode, in which a frozen autoencoder never is: it is the same in a tokenizer's training and after."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def encode(self, images_B3HW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        """Scaled latents; `noise_BCHW` is the draw of an autoencoder that samples its posterior."""
        raise NotImplementedError

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Images of scaled latents, not clamped."""
        raise NotImplementedError

    def training_step(self, images_B3HW: Tensor, settings: Any, rng: SampleRng) -> Reconstructed:
        """Reconstructions of the images, and the autoencoder's own losses.

        `settings` is what the kind's `training` class holds; draws come from `rng` alone.
        """
        raise NotImplementedError

    def last_layer(self) -> Tensor:
        """The weights of the last layer that makes images, where an adversarial loss is weighed against the others."""
        raise UsageError(
            f"expected an autoencoder with a last layer for train.discriminator, found kind {self.config.kind}"
        )

    def measure(self, batches: Iterable[Tensor]) -> AutoencoderSettings:
        """Scale the latents to unit size over `batches` of training images, once after the training.

        Gives the settings that the checkpoint is saved with. As it is: nothing to scale.
        """
        return self.config

    def load_pretrained(self, source: str, sha256: str | None = None) -> None:
        """Take over weights made elsewhere, from a folder or Hub id.

        Raises UsageError where they do not fit, and where their file has another hash than `sha256`.
        """
        raise UsageError(
            f"expected an autoencoder to train, found pretrained weights {source}; kind {self.config.kind} takes none"
        )

    def latent_shape(self, images_B3HW: Tensor) -> tuple[int, int, int]:
        """(c, h, w) of the latents of `images_B3HW`."""
        return self.channels, images_B3HW.shape[2] // self.factor, images_B3HW.shape[3] // self.factor
