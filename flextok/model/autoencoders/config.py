"""Settings of autoencoders, light to import.

A new autoencoder is one file in this room, named as its kind: a class of settings whose `build` gives an `Autoencoder`
(see base.py), registered by the decorator. What only its training reads goes into a class of its own, named as
`training`.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from flextok.config import Added, Config
from flextok.registry import ConfigRegister, TrainingSettings

if TYPE_CHECKING:
    from flextok.model.autoencoders.base import Autoencoder


PixelLoss = Literal["l1", "l2"]
GradientWeight = Annotated[
    float,
    Field(
        ge=0,
        description="Of the same error of the differences of neighbouring pixels, beside it: flat areas come back flat and "
        "edges sharp.",
    ),
]


class AutoencoderTraining(Config):
    """What only the training of an autoencoder reads; as it is, that of one without such settings."""

    kind: str = Field(description="The autoencoder's kind.")


class AutoencoderSettings(Config):
    """What decides an autoencoder; the base of each kind's settings, which also have a `factor`."""

    training: ClassVar[type[AutoencoderTraining]] = AutoencoderTraining
    has_pretrained: ClassVar[bool] = False
    """Whether `Autoencoder.load_pretrained` can take over weights made elsewhere."""

    kind: str
    latent_channels: int = Field(gt=0, description="Channels of the latents.")

    if TYPE_CHECKING:

        @property
        def factor(self) -> int:
            """Pixels a latent position covers along each side; a field or a property of each kind."""
            ...

    def build(self) -> "Autoencoder":
        """The autoencoder, its weights drawn from torch's global generator."""
        raise NotImplementedError


AUTOENCODERS = ConfigRegister("autoencoder", home="flextok.model.autoencoders")
AUTOENCODER_TRAINING = TrainingSettings(AUTOENCODERS)
AUTOENCODER_TRAINING.default_kind = "conv"
AutoencoderConfig = Annotated[AutoencoderSettings, AUTOENCODERS]
AutoencoderTrainingConfig = Annotated[AutoencoderTraining, AUTOENCODER_TRAINING]


class ConvTraining(AutoencoderTraining):
    """How the small convolutional autoencoder is trained."""

    kind: Literal["conv"] = "conv"
    latent_noise: float = Field(
        default=0.1,
        ge=0,
        description="Noise on the latents while training, so that the decoder forgives a sampler's errors.",
    )
    pixel_loss: Added[PixelLoss] = Field(
        default="l1", description="Absolute (l1) or squared (l2) error; by the first, flat areas become exact."
    )
    gradient_weight: Added[GradientWeight] = 0.0


@AUTOENCODERS.register
class ConvAutoencoderConfig(AutoencoderSettings):
    """A small convolutional autoencoder, trained here where no pretrained one is at hand."""

    training = ConvTraining

    kind: Literal["conv"] = "conv"
    channels: int = Field(gt=0, description="Width of the residual blocks.")
    blocks: int = Field(default=2, ge=0, description="Residual blocks in the encoder, and as many in the decoder.")
    latent_channels: int = Field(default=4, gt=0, description="Channels of the latents.")
    factor: int = Field(default=4, gt=0, description="Pixels a latent position covers along each side.")

    def build(self) -> "Autoencoder":
        from flextok.model.autoencoders.conv import ConvAutoencoder

        return ConvAutoencoder(self)


class KLTraining(AutoencoderTraining):
    """How diffusers' AutoencoderKL is trained."""

    kind: Literal["autoencoder_kl"] = "autoencoder_kl"
    pixel_loss: Added[PixelLoss] = Field(default="l2", description="Absolute (l1) or squared (l2) error of the pixels.")
    gradient_weight: Added[GradientWeight] = 0.0
    kl_weight: Added[float] = Field(
        default=1e-6,
        ge=0,
        description="Of the posterior's divergence, a sum over the latents, beside the mean over pixels.",
    )


@AUTOENCODERS.register
class AutoencoderKLConfig(AutoencoderSettings):
    """The published autoencoder: a diffusers AutoencoderKL. Its factor is 2^(number of blocks - 1)."""

    training = KLTraining
    has_pretrained = True

    kind: Literal["autoencoder_kl"] = "autoencoder_kl"
    block_out_channels: tuple[int, ...] = Field(
        default=(128, 256, 512, 512), min_length=1, max_length=8, description="Width of each block, halving the size."
    )
    layers_per_block: int = Field(default=2, gt=0, le=64, description="Residual layers of each block.")
    latent_channels: int = Field(default=16, gt=0, description="Channels of the latents.")
    norm_num_groups: int = Field(default=32, gt=0, description="Groups of every GroupNorm; divides all widths.")
    use_quant_conv: bool = Field(default=True, description="A 1x1 convolution after the encoder.")
    use_post_quant_conv: bool = Field(default=True, description="A 1x1 convolution before the decoder.")
    mid_block_add_attention: bool = Field(default=True, description="Attention at the lowest resolution.")
    scaling_factor: float = Field(default=0.18215, gt=0, description="Latents are the autoencoder's times this.")
    sample_posterior: bool = Field(
        default=False, description="Latents are a draw from the posterior rather than its mean."
    )

    @model_validator(mode="after")
    def _groups_fit(self) -> "AutoencoderKLConfig":
        if any(channels < 1 or channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError(f"norm_num_groups {self.norm_num_groups} does not divide {self.block_out_channels}")
        return self

    @property
    def factor(self) -> int:
        """Pixels a latent position covers along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def build(self) -> "Autoencoder":
        from flextok.model.autoencoders.autoencoder_kl import KLAutoencoder

        return KLAutoencoder(self)
