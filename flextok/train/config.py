"""Training settings: what decides the weights (recipes) and where the work runs (compute)."""

from typing import Literal

from pydantic import Field, model_validator

from flextok.config import Config, Operational
from flextok.model.config import LatentsConfig, TokenizerModelConfig
from flextok.model.priors.base import PriorModelConfig


class OptimizerConfig(Config):
    """Linear warm-up and a cosine down to a fraction of the top learning rate, for either kind of optimizer."""

    kind: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="AdamW, or Muon for the matrices of transformer blocks and AdamW for all else: more learnt a step, "
        "and a step costs more.",
    )
    lr: float = Field(default=1e-3, gt=0, description="Learning rate after warm-up.")
    warmup_steps: int = Field(default=100, ge=0, description="Steps over which the learning rate rises from 0.")
    final_lr_fraction: float = Field(
        default=0.05, ge=0, le=1, description="Learning rate at the last step, as a part of lr."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled decay; matrices only, not biases or gains.")
    betas: tuple[float, float] = Field(default=(0.9, 0.99), description="Decay of AdamW's two moments.")
    grad_clip: float = Field(default=1.0, gt=0, description="Largest norm of the whole gradient.")


class TrainConfig(Config):
    """One training run: how long, on how much at a time, and what is recorded on the way.

    What is recorded decides no weight. It is operational: a change of it resumes the same run and makes no trained
    model stale; the curves of the report are then those that were recorded.
    """

    steps: int = Field(gt=0, description="Optimizer steps.")
    batch_size: int = Field(default=64, gt=0, description="Samples a step over all workers together.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    ema_decay: float = Field(
        default=0.999, ge=0, lt=1, description="Decay of the averaged weights, which are what is saved."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the initial weights, the sample order and all draws.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of the matrix products; auto is bfloat16 where the machine computes it natively."
    )
    checkpoint_every: Operational[int] = Field(
        default=500, gt=0, description="Steps between training states a killed run goes on from."
    )
    log_every: Operational[int] = Field(default=50, gt=0, description="Steps between rows of the history.")
    validate_every: Operational[int | None] = Field(
        default=None, gt=0, description="Steps between held-out losses; none when null."
    )
    validation_samples: Operational[int] = Field(
        default=512, gt=0, description="Held-out samples that a validation looks at."
    )


class LatentsRecipe(Config):
    """What decides stage 0, the autoencoder whose latents the tokenizer works on."""

    model: LatentsConfig = Field(description="Its architecture.")
    train: TrainConfig | None = Field(default=None, description="How it is trained; null when `pretrained` is given.")
    pretrained: str | None = Field(
        default=None,
        description="Folder or Hub id of diffusers weights to take instead of training (kind autoencoder_kl).",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "LatentsRecipe":
        if (self.train is None) == (self.pretrained is None):
            raise ValueError("exactly one of 'train' and 'pretrained' must be given")
        if self.pretrained is not None and self.model.kind != "autoencoder_kl":
            raise ValueError(f"'pretrained' needs model.kind autoencoder_kl, not {self.model.kind}")
        return self


class TokenizerRecipe(Config):
    """What decides the tokenizer's weights."""

    model: TokenizerModelConfig = Field(description="Its architecture; latents and image size come from the pipeline.")
    train: TrainConfig = Field(description="How it is trained.")


class PriorRecipe(Config):
    """What decides the prior's weights."""

    model: PriorModelConfig = Field(description="Its architecture; vocabulary and classes come from the tokens.")
    train: TrainConfig = Field(description="How it is trained.")
