"""diffusers' AutoencoderKL, as published with FlexTok."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from flextok.errors import UsageError
from flextok.model.autoencoders.base import Autoencoder, Reconstructed, pixel_error
from flextok.model.autoencoders.config import AutoencoderKLConfig, KLTraining
from flextok.model.rng import SampleRng
from flextok.runtime import torchvision_compat  # noqa: F401  (diffusers imports torchvision)
from flextok.weights import check_weights, from_hub

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"


class KLAutoencoder(Autoencoder):
    """diffusers' AutoencoderKL, in float32 always, its latents times a scaling factor."""

    config: AutoencoderKLConfig

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__(config)
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        blocks = len(config.block_out_channels)
        self.scaling_factor = config.scaling_factor
        self.sample_posterior = config.sample_posterior
        # Any: diffusers' annotations call for tuples of length one and outputs without fields
        architecture: dict[str, Any] = {
            **config.model_dump(exclude={"kind", "scaling_factor", "sample_posterior"}),
            "down_block_types": ("DownEncoderBlock2D",) * blocks,
            "up_block_types": ("UpDecoderBlock2D",) * blocks,
        }
        self.vae: Any = AutoencoderKL(**architecture)

    def train(self, mode: bool = True) -> Self:
        """Training mode even where frozen: nothing differs in it but the last bit of an attention's result."""
        nn.Module.train(self, mode)
        return self

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

    def training_step(self, images_B3HW: Tensor, settings: KLTraining, rng: SampleRng) -> Reconstructed:
        """`reconstruction`: error of the pixels of a draw from the posterior; `kl`: its divergence, weighted."""
        noise = rng.normal("noise", self.latent_shape(images_B3HW)).to(images_B3HW.device)
        posterior = self.posterior(images_B3HW)
        z = (posterior.mean + posterior.std * noise) * self.scaling_factor
        reconstructions = self.decode(z)
        error = pixel_error(reconstructions, images_B3HW, settings.pixel_loss, settings.gradient_weight)
        return Reconstructed(reconstructions, {"reconstruction": error, "kl": settings.kl_weight * posterior.kl()})

    def last_layer(self) -> Tensor:
        """The last convolution's."""
        return self.vae.decoder.conv_out.weight

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> AutoencoderKLConfig:
        """The settings with the scaling factor that gives the latents of `batches` unit deviation."""
        unscaled = torch.cat([self.encode(images).flatten() / self.scaling_factor for images in batches])
        self.scaling_factor = 1 / unscaled.double().std().item()
        return self.config.model_copy(update={"scaling_factor": self.scaling_factor})

    def load_pretrained(self, source: str, sha256: str | None = None) -> None:
        """The diffusers weights at `source`, whose architecture must be this one; `sha256` is that of their one file."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        if sha256 is not None:
            source = str(_checked(source, sha256))
        try:
            pretrained = AutoencoderKL.from_pretrained(source, use_safetensors=True, low_cpu_mem_usage=False)
            self.vae.load_state_dict(pretrained.state_dict())
        except (OSError, ValueError, RuntimeError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise UsageError(
                f"expected diffusers weights of latents.model's architecture in {source}, found: {first_line}"
            ) from None

    def _vae_on(self, device: torch.device) -> Any:
        """The autoencoder. On a CPU it takes one image at a time: activations of 32 MiB an image leave its caches."""
        self.vae.use_slicing = device.type == "cpu"
        return self.vae


def _checked(source: str, sha256: str) -> Path:
    """The folder of diffusers weights with this hash; UsageError where they are others."""
    whose, remedy = "the autoencoder", "set latents.pretrained to a folder with the weights of that hash"
    folder = Path(source) if Path(source).is_dir() else from_hub(source, (CONFIG, WEIGHTS), whose, remedy)
    check_weights(str(folder / WEIGHTS), sha256, whose, f"{remedy}, or leave latents.pretrained_sha256 out")
    return folder
