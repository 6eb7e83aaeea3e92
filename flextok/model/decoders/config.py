"""Settings of decoders, light to import."""

from pydantic import Field

from flextok.config import Config


class SamplerConfig(Config):
    """How tokens are decoded: the one place of these settings, for API, length policies, evaluation and commands."""

    steps: int = Field(default=25, ge=1, description="Euler steps of the flow decoder.")
    guidance: float = Field(default=7.5, ge=0, description="Guidance of the flow decoder; 1 is none and twice as fast.")
    norm_guidance: bool = Field(default=True, description="Adaptive projected guidance rather than plain guidance.")
    seed: int = Field(default=0, ge=0, description="Seed of the decoder's noise; each image has a stream of its own.")
