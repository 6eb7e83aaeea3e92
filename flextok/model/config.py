"""Configuration of a tokenizer: what decides the shape of every weight and the meaning of every token id."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flextok.config import Config


class TrunkConfig(Config):
    """A transformer trunk. Published sizes: d12 (768, 12), d18 (1152, 18), d28 (1792, 28), all with head_dim 64."""

    width: int = Field(gt=0, le=65_536, multiple_of=4, description="Width of the residual stream.")
    depth: int = Field(gt=0, le=1_024, description="Number of blocks.")
    head_dim: int = Field(default=64, gt=0, description="Width of an attention head; must divide the width.")
    mlp_ratio: float = Field(default=4.0, gt=0, description="SwiGLU hidden width is int(2*int(width*ratio)/3).")

    @model_validator(mode="after")
    def _heads_fit(self) -> "TrunkConfig":
        if self.width % self.head_dim:
            raise ValueError(f"head_dim {self.head_dim} does not divide width {self.width}")
        if self.hidden < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} leaves no hidden units at width {self.width}")
        return self

    @property
    def hidden(self) -> int:
        """Hidden width of the SwiGLU."""
        return int(2 * int(self.width * self.mlp_ratio) / 3)


class FSQConfig(Config):
    """Finite scalar quantization (Mentzer et al. 2023): each channel rounded to a few levels."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(8, 8, 8, 5, 5, 5), min_length=1, description="Levels of each channel; their product is the vocabulary."
    )

    @model_validator(mode="after")
    def _ids_fit(self) -> "FSQConfig":
        if math.prod(self.levels) > 2**31:
            raise ValueError(f"levels {self.levels} give more than 2^31 ids")
        return self


class FlowDecoderConfig(Config):
    """Rectified-flow decoder: a full-attention trunk over [patches, registers], modulated by the timestep."""

    kind: Literal["flow"] = "flow"
    trunk: TrunkConfig
    max_timestep: float = Field(
        default=1.0, gt=0, description="Frequencies of the timestep embedding scale with 1000/this."
    )
    frequency_size: int = Field(default=256, ge=2, description="Width of the sinusoidal timestep embedding.")


class ConvLatentsConfig(Config):
    """A small convolutional autoencoder, trained here as stage 0 where no pretrained one is at hand."""

    kind: Literal["conv"] = "conv"
    channels: int = Field(gt=0, description="Width of the residual blocks.")
    blocks: int = Field(default=2, ge=0, description="Residual blocks in the encoder, and as many in the decoder.")
    latent_channels: int = Field(default=4, gt=0, description="Channels of the latents.")
    factor: int = Field(default=4, gt=0, description="Pixels a latent position covers along each side.")
    latent_noise: float = Field(
        default=0.1,
        ge=0,
        description="Noise on the latents while training, so that the decoder forgives a sampler's errors.",
    )


class AutoencoderKLConfig(Config):
    """The published stage 0: a diffusers AutoencoderKL. Its factor is 2^(number of blocks - 1)."""

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


# One member today stands where a recipe will choose between more: make it a union discriminated by `kind`.
LatentsConfig = Annotated[ConvLatentsConfig | AutoencoderKLConfig, Field(discriminator="kind")]
QuantizerConfig = FSQConfig
DecoderConfig = FlowDecoderConfig
KeepMode = Literal["uniform", "pow2", "uniform_pow2"]


class TokenizerModelConfig(Config):
    """The part of a tokenizer that a recipe chooses; latents and image size come from the steps before it."""

    patch_size: int = Field(default=2, gt=0, description="Latent positions a patch covers along each side.")
    registers: int = Field(default=256, gt=0, le=65_535, description="L, the longest token sequence of an image.")
    encoder: TrunkConfig
    quantizer: QuantizerConfig = FSQConfig()
    decoder: DecoderConfig
    posemb_grid: tuple[int, int] | None = Field(
        default=None, description="Rows and columns of the tables of patch positions; null means those of image_size."
    )
    posemb_scaling: Literal["absolute", "interpolate"] = Field(
        default="absolute", description="Other grids crop the table of positions (absolute) or resize it (interpolate)."
    )
    keep_mode: KeepMode = Field(default="uniform", description="How many tokens nested dropout keeps in training.")
    condition_dropout: float = Field(
        default=0.1, ge=0, le=1, description="Share of images trained without their tokens."
    )
    pure_noise_steps: int = Field(
        default=0,
        ge=0,
        description="First training steps with every noise level at 1, where only the tokens tell the image.",
    )
    pure_noise_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of the images with noise level 1 in the steps after those."
    )
    sigma: Literal["uniform", "logit_normal"] = Field(default="uniform", description="Distribution of the noise level.")
    mode_scale: float = Field(
        default=0.0, description="Mode-sampling scale of uniform noise levels; 0 leaves them uniform."
    )


class TokenizerConfig(TokenizerModelConfig):
    """All that decides a tokenizer's architecture and its training draws."""

    latents: LatentsConfig
    image_size: int = Field(gt=0, description="Side of a training image in pixels.")

    @model_validator(mode="after")
    def _image_fits(self) -> "TokenizerConfig":
        side = self.latents.factor * self.patch_size
        if self.image_size % side:
            raise ValueError(f"image_size {self.image_size} is not a multiple of factor*patch_size = {side}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tables of patch positions."""
        side = self.image_size // (self.latents.factor * self.patch_size)
        return self.posemb_grid or (side, side)
