"""Configuration of the autoregressive prior."""

from typing import Literal

from pydantic import Field, model_validator

from flextok.config import Config


class PriorModelConfig(Config):
    """The part of a prior's architecture that a recipe chooses."""

    width: int = Field(gt=0, description="Width of the trunk.")
    depth: int = Field(gt=0, description="Number of blocks.")
    head_dim: int = Field(default=64, gt=0, description="Width of an attention head; divides width.")
    mlp_ratio: float = Field(default=4.0, gt=0, description="SwiGLU hidden width is 2/3 of this times width.")
    condition: Literal["class", "text", "none"] = Field(default="class", description="What steers the generation.")
    text_encoder: str = Field(default="hashed-words", description="Name of the text encoder, where condition is text.")
    context_width: int = Field(
        default=64, gt=0, description="Width of the text encoder's features, where condition is text."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Of each residual branch, in training.")
    condition_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Part of the samples trained without condition."
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> "PriorModelConfig":
        if self.width % self.head_dim:
            raise ValueError(f"head_dim {self.head_dim} does not divide width {self.width}")
        return self


class PriorConfig(PriorModelConfig):
    """A prior's whole architecture; the fields here come from the tokens it is trained on."""

    num_tokens: int = Field(gt=0, description="Positions of an image (L).")
    codebooks: int = Field(default=1, gt=0, description="Ids at each position (C).")
    vocab_size: int = Field(gt=0, description="Number of different ids (V).")
    num_classes: int = Field(default=0, ge=0, description="Number of classes, where condition is class.")
    tokenizer: str = Field("", description="Digest of the tokenizer that gave the ids.")

    @model_validator(mode="after")
    def _classes_are_known(self) -> "PriorConfig":
        if (self.condition == "class") != (self.num_classes > 0):
            raise ValueError(f"condition {self.condition} does not go with num_classes {self.num_classes}")
        return self

    @property
    def sequence_length(self) -> int:
        """Ids of an image over all codebooks (N)."""
        return self.num_tokens * self.codebooks
