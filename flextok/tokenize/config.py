"""Settings of tokenization: what decides the rows of a token store."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flextok.config import Config, Operational
from flextok.data.corpus.crops import View
from flextok.tokenize.lengths.all import AllTokens
from flextok.tokenize.lengths.base import LENGTHS, LengthPolicy


class TokenizeConfig(Config):
    """One tokenization of a corpus."""

    keep: int | None = Field(None, ge=1, description="Tokens stored for each image; null stores all.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="What the tokenizer computes in.")
    batch_size: Operational[int | None] = Field(
        None, ge=1, description="Images in a call of the tokenizer; null: 32, and found by trying for large corpora."
    )
    views: tuple[View, ...] = Field(
        ("center",), min_length=1, description="Crops and flips of an image, each a row; start is left or top."
    )
    length: Annotated[LengthPolicy, LENGTHS] = Field(
        AllTokens(), description="How many of the stored tokens an image needs."
    )
    max_reject_fraction: Operational[float] = Field(
        0.05, ge=0, le=1, description="More undecodable images than this share of the corpus is a failure."
    )

    @model_validator(mode="after")
    def _views_differ(self) -> "TokenizeConfig":
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views must differ, found {self.views}")
        return self
