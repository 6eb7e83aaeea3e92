"""The size of a transformer trunk, light to import."""

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
