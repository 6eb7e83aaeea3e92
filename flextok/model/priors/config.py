"""Settings of priors, light to import.

A new kind is one file in this room, named as its kind: a class of settings whose `build` gives a `Prior` (see base.py),
registered by the decorator.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from flextok.config import Config
from flextok.registry import ConfigRegister

if TYPE_CHECKING:
    from flextok.model.priors.base import Prior

Condition = Literal["class", "text", "none"]
IN_PLACE = ("hashed-words", "hashed_words")
"""Text encoders whose features cost less to compute than to read, and which have no weights that may differ."""


class PriorModelConfig(Config):
    """What a recipe chooses of a prior; the base of each kind's settings."""

    kind: str
    condition: Condition = Field(default="class", description="What steers the generation.")
    text_encoder: str = Field(default="hashed-words", description="Name of the text encoder, where condition is text.")
    context_width: int = Field(
        default=64, gt=0, description="Width of the text encoder's features, where condition is text."
    )

    @property
    def has_stored_text(self) -> bool:
        """Whether it reads captions as features that are worth storing beside the tokens."""
        return self.condition == "text" and self.text_encoder not in IN_PLACE

    def build(self, config: "PriorConfig") -> "Prior":
        """The prior of `config`, of which these settings are a part; its weights come from torch's global generator."""
        raise NotImplementedError


PRIORS = ConfigRegister("prior", home="flextok.model.priors")
PRIORS.default_kind = "autoregressive"
PriorModel = Annotated[PriorModelConfig, PRIORS]


@PRIORS.register
class AutoregressiveConfig(PriorModelConfig):
    """A causal transformer over the ids."""

    kind: Literal["autoregressive"] = "autoregressive"
    width: int = Field(gt=0, description="Width of the trunk.")
    depth: int = Field(gt=0, description="Number of blocks.")
    head_dim: int = Field(default=64, gt=0, description="Width of an attention head; divides width.")
    mlp_ratio: float = Field(default=4.0, gt=0, description="SwiGLU hidden width is 2/3 of this times width.")

    @model_validator(mode="after")
    def _heads_fit(self) -> "AutoregressiveConfig":
        if self.width % self.head_dim:
            raise ValueError(f"head_dim {self.head_dim} does not divide width {self.width}")
        return self

    def build(self, config: "PriorConfig") -> "Prior":
        from flextok.model.priors.autoregressive import AutoregressivePrior

        return AutoregressivePrior(config, self)


@PRIORS.register
class LlamaConfig(AutoregressiveConfig):
    """The same with Llama's transformer, so that `flextok export-prior` can give it to others; of classes or of nothing.

    RMSNorm, rotated queries and keys (RoPE), no biases, and the class as the first token.
    """

    kind: Literal["llama"] = "llama"

    @model_validator(mode="after")
    def _is_plain(self) -> "LlamaConfig":
        if self.condition == "text":
            raise ValueError("expected condition class or none for kind llama, which reads no captions, found text")
        if self.head_dim % 2:
            raise ValueError(f"expected an even head_dim, whose halves are rotated together, found {self.head_dim}")
        return self

    def build(self, config: "PriorConfig") -> "Prior":
        from flextok.model.priors.llama import LlamaPrior

        return LlamaPrior(config, self)


class PriorConfig(Config):
    """A prior's whole architecture: what a recipe chooses, and what follows from the tokens it is trained on."""

    model: PriorModel
    num_tokens: int = Field(gt=0, description="Positions of an image (L).")
    codebooks: int = Field(default=1, gt=0, description="Ids at each position (C).")
    vocab_size: int = Field(gt=0, description="Number of different ids (V).")
    num_classes: int = Field(default=0, ge=0, description="Number of classes, where condition is class.")
    tokenizer: str = Field(default="", description="Digest of the tokenizer that gave the ids.")
    text_encoder_digest: str = Field(
        default="", description="Digest of the text encoder that it was trained with, where that has weights."
    )

    @model_validator(mode="before")
    @classmethod
    def _in_parts(cls, values: Any) -> Any:
        """Checkpoints written before there were kinds hold all settings side by side."""
        if not isinstance(values, Mapping) or "model" in values:
            return values
        own = {name: value for name, value in values.items() if name in cls.model_fields}
        return {**own, "model": {name: value for name, value in values.items() if name not in own}}

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the encoder's digest where there is none, as in the checkpoints that were written before."""
        values: dict[str, Any] = serialize(self)
        return {name: value for name, value in values.items() if name != "text_encoder_digest" or value}

    @model_validator(mode="after")
    def _classes_are_known(self) -> "PriorConfig":
        if (self.condition == "class") != (self.num_classes > 0):
            raise ValueError(f"condition {self.condition} does not go with num_classes {self.num_classes}")
        return self

    @property
    def condition(self) -> Condition:
        """What steers the generation."""
        return self.model.condition

    @property
    def sequence_length(self) -> int:
        """Ids of an image over all codebooks (N)."""
        return self.num_tokens * self.codebooks

    def build(self) -> "Prior":
        """The prior, its weights drawn from torch's global generator."""
        return self.model.build(self)
