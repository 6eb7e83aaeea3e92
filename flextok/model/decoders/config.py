"""Settings of decoders, light to import.

A new decoder is one file in this room, named as its kind: a class of settings whose `build` gives a `Decoder` (see
base.py), registered by the decorator. What only its training reads goes into a class of its own, named as `training`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from flextok.config import Added, Config
from flextok.model.nn.config import TrunkConfig
from flextok.model.teachers.config import TeacherConfig
from flextok.registry import ConfigRegister, TrainingSettings

if TYPE_CHECKING:
    from flextok.model.decoders.base import Decoder


class SamplerConfig(Config):
    """How tokens are decoded: the one place of these settings, for API, length policies, evaluation and commands."""

    steps: int = Field(default=25, ge=1, description="Euler steps of the flow decoder.")
    guidance: float = Field(default=7.5, ge=0, description="Guidance of the flow decoder; 1 is none and twice as fast.")
    norm_guidance: bool = Field(default=True, description="Adaptive projected guidance rather than plain guidance.")
    seed: int = Field(default=0, ge=0, description="Seed of the decoder's noise; each image has a stream of its own.")

    def arguments(self) -> dict[str, Any]:
        """These settings as the keyword arguments of `Tokenizer.detokenize`, whatever else a subclass has."""
        return {name: getattr(self, name) for name in SamplerConfig.model_fields}


@dataclass(frozen=True)
class DecoderShape:
    """The sizes that a decoder takes over from its tokenizer."""

    registers: int
    """L, the longest token sequence of an image."""
    code_dim: int
    """d, the width of a quantized code."""
    channels: int
    """Channels of the latents."""
    patch_size: int
    """Latent positions a patch covers along each side."""
    grid: tuple[int, int]
    """Rows and columns of patches in an image of the training size."""
    posemb_scaling: Literal["absolute", "interpolate"]
    """Other grids crop the table of positions (absolute) or resize it (interpolate)."""


class DecoderTraining(Config):
    """What only the training of a decoder reads; as it is, that of one without such settings."""

    kind: str = Field(description="The decoder's kind.")

    def turns(self) -> set[int]:
        """Steps from which its losses are others by design."""
        return set()


class DecoderSettings(Config):
    """What decides a decoder; the base of each kind's settings."""

    training: ClassVar[type[DecoderTraining]] = DecoderTraining

    kind: str

    def build(self, shape: DecoderShape) -> "Decoder":
        """The decoder, its weights drawn from torch's global generator."""
        raise NotImplementedError


DECODERS = ConfigRegister("decoder", home="flextok.model.decoders")
DECODERS.default_kind = "flow"
DECODER_TRAINING = TrainingSettings(DECODERS)
DecoderConfig = Annotated[DecoderSettings, DECODERS]
DecoderTrainingConfig = Annotated[DecoderTraining, DECODER_TRAINING]


class AlignmentConfig(Config):
    """Representation alignment (REPA, arXiv 2410.06940): patches of the decoder drawn to a frozen teacher's features.

    Its loss is called `alignment`, and is weighted by `train.loss_weights` as others are.
    """

    teacher: TeacherConfig = Field(description="Whose features, by its kind: dinov2, efficientnet_lite0.")
    layer: int = Field(default=1, ge=1, description="Decoder blocks behind which the patches are taken, from 1.")
    projector_width: int = Field(
        default=2048,
        gt=0,
        description="Of the MLP between both, which only training has; as published, and too costly for a small decoder.",
    )
    until_step: int | None = Field(
        default=None, gt=0, description="The step that it ends before; null: none. Left on, it hinders in the end."
    )

    def is_on(self, step: int) -> bool:
        """Whether it is applied in `step`, counted from 0."""
        return self.until_step is None or step < self.until_step


class FlowTraining(DecoderTraining):
    """Noise levels that a flow decoder is trained at."""

    kind: Literal["flow"] = "flow"
    sigma: Literal["uniform", "logit_normal"] = Field(default="uniform", description="Distribution of the noise level.")
    mode_scale: float = Field(
        default=0.0, description="Mode-sampling scale of uniform noise levels; 0 leaves them uniform."
    )
    pure_noise_steps: int = Field(
        default=0,
        ge=0,
        description="First training steps with every noise level at 1, where only the tokens tell the image.",
    )
    pure_noise_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of the images with noise level 1 in the steps after those."
    )
    alignment: Added[AlignmentConfig | None] = Field(default=None, description="REPA; null: none.")

    def turns(self) -> set[int]:
        """Where noise levels below 1 come in, and where the alignment ends."""
        until_step = self.alignment.until_step if self.alignment is not None else None
        return {self.pure_noise_steps, *([until_step] if until_step is not None else [])}


@DECODERS.register
class FlowDecoderConfig(DecoderSettings):
    """Rectified-flow decoder: a full-attention trunk over [patches, registers], modulated by the timestep."""

    training = FlowTraining

    kind: Literal["flow"] = "flow"
    trunk: TrunkConfig
    max_timestep: float = Field(
        default=1.0, gt=0, description="Frequencies of the timestep embedding scale with 1000/this."
    )
    frequency_size: int = Field(default=256, ge=2, description="Width of the sinusoidal timestep embedding.")

    def build(self, shape: DecoderShape) -> "Decoder":
        from flextok.model.decoders.flow import FlowDecoder

        return FlowDecoder(self, shape)
