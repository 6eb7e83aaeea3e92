"""Configuration of a tokenizer: what decides the shape of every weight and the meaning of every token id."""

from typing import Literal, Self

from pydantic import Field, model_validator

from flextok.config import Config
from flextok.model.autoencoders.config import AutoencoderConfig
from flextok.model.decoders.config import DecoderConfig, DecoderShape
from flextok.model.nn.config import TrunkConfig
from flextok.model.quantizers.config import FSQConfig, QuantizerConfig

KeepMode = Literal["uniform", "pow2", "uniform_pow2", "inverse_pow2"]


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

    def trunks(self) -> dict[str, TrunkConfig]:
        """The transformers in it by the part they belong to; a decoder may be without one."""
        trunk = getattr(self.decoder, "trunk", None)
        return {"encoder": self.encoder, **({"decoder": trunk} if trunk is not None else {})}

    def with_width(self, width: int) -> Self:
        """The same with trunks of that width."""
        trunks = {part: trunk.model_copy(update={"width": width}) for part, trunk in self.trunks().items()}
        changed: dict[str, Config] = {"encoder": trunks["encoder"]}
        if "decoder" in trunks:
            changed["decoder"] = self.decoder.model_copy(update={"trunk": trunks["decoder"]})
        return self.model_copy(update=changed)


class TokenizerConfig(TokenizerModelConfig):
    """All that decides a tokenizer's architecture."""

    latents: AutoencoderConfig
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

    def decoder_shape(self, code_dim: int) -> DecoderShape:
        """What a decoder of codes of that width must know."""
        return DecoderShape(
            registers=self.registers,
            code_dim=code_dim,
            channels=self.latents.latent_channels,
            patch_size=self.patch_size,
            grid=self.grid,
            posemb_scaling=self.posemb_scaling,
        )
