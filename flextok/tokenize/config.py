"""Settings of tokenization: what decides the rows of a token store."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flextok.config import Config, Operational

View = Literal["center", "center_flip", "start", "start_flip", "end", "end_flip"]


class AllTokens(Config):
    """Every image keeps all its tokens."""

    kind: Literal["all"] = "all"


class FixedLength(Config):
    """Every image keeps the same number of tokens (all are stored; `length` says how many count)."""

    kind: Literal["fixed"] = "fixed"
    tokens: int = Field(ge=1, description="Tokens kept.")


class ThresholdLength(Config):
    """An image keeps the fewest tokens whose reconstruction is close enough, or all when none is.

    Looks at 1, 2, 4, ... tokens; where the error falls all the way it bisects between two of them, elsewhere it tries
    every number. This decodes each image many times: expect it to cost 10 to 100 times the encoding.
    """

    kind: Literal["threshold"] = "threshold"
    metric: Literal["mae", "mse", "psnr"] = Field("mae", description="Pixel error, values in [0, 1] (PSNR in dB).")
    eps: float = Field(gt=0, description="Largest mae or mse, or smallest psnr, that is close enough.")
    steps: int = Field(25, ge=1, description="Steps of the flow decoder.")
    guidance: float = Field(1.0, ge=0, description="Guidance of the flow decoder.")
    norm_guidance: bool = Field(True, description="Adaptive projected rather than plain guidance.")
    seed: int = Field(0, ge=0, description="Seed of the decoder's noise; each image has a stream of its own.")


LengthPolicy = Annotated[AllTokens | FixedLength | ThresholdLength, Field(discriminator="kind")]


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
    length: LengthPolicy = Field(AllTokens(), description="How many of the stored tokens an image needs.")
    max_reject_fraction: Operational[float] = Field(
        0.05, ge=0, le=1, description="More undecodable images than this share of the corpus is a failure."
    )

    @model_validator(mode="after")
    def _views_differ(self) -> "TokenizeConfig":
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views must differ, found {self.views}")
        return self
