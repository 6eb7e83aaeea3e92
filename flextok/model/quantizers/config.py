"""Settings of quantizers, light to import.

A new quantizer is one file in this room, named as its kind: a class of settings whose `build` gives a `Quantizer` (see
base.py), registered by the decorator. What only its training reads goes into a class of its own, named as `training`.
"""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from flextok.config import Config
from flextok.registry import ConfigRegister, TrainingSettings

if TYPE_CHECKING:
    from flextok.model.quantizers.base import Quantizer


class QuantizerTraining(Config):
    """What only the training of a quantizer reads; as it is, that of one without such settings."""

    kind: str = Field(description="The quantizer's kind.")


class QuantizerSettings(Config):
    """What decides a quantizer; the base of each kind's settings."""

    training: ClassVar[type[QuantizerTraining]] = QuantizerTraining

    kind: str

    def build(self) -> "Quantizer":
        """The quantizer, its weights drawn from torch's global generator."""
        raise NotImplementedError


QUANTIZERS = ConfigRegister("quantizer", home="flextok.model.quantizers")
QUANTIZERS.default_kind = "fsq"
QUANTIZER_TRAINING = TrainingSettings(QUANTIZERS)
QuantizerConfig = Annotated[QuantizerSettings, QUANTIZERS]
QuantizerTrainingConfig = Annotated[QuantizerTraining, QUANTIZER_TRAINING]


@QUANTIZERS.register
class FSQConfig(QuantizerSettings):
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

    def build(self) -> "Quantizer":
        from flextok.model.quantizers.fsq import FSQ

        return FSQ(self)
