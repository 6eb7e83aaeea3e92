"""Training settings: what decides the weights (recipes) and where the work runs (compute)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from flextok.config import Added, Config, Operational
from flextok.model.autoencoders.config import (
    AUTOENCODER_TRAINING,
    AutoencoderConfig,
    AutoencoderTrainingConfig,
    ConvTraining,
)
from flextok.model.config import KeepMode, TokenizerModelConfig
from flextok.model.decoders.config import DECODER_TRAINING, DecoderTrainingConfig, FlowTraining, SamplerConfig
from flextok.model.priors.config import PriorModel
from flextok.model.quantizers.config import QUANTIZER_TRAINING, QuantizerTraining, QuantizerTrainingConfig
from flextok.train.schedule import CosineSchedule, ScheduleConfig
from flextok.train.sinks.base import SinkConfig, named_sinks

EmaDecay = Annotated[float, Field(ge=0, lt=1)]
BaseWidth = Annotated[
    int | None,
    Field(
        gt=0,
        multiple_of=4,
        description="muP (arXiv 2203.03466): width of trunks at which the learning rate was found, which then fits others; "
        "null: none.",
    ),
]


class OptimizerConfig(Config):
    """Linear warm-up and a schedule after it, for either kind of optimizer."""

    kind: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="AdamW, or Muon for the matrices of transformer blocks and AdamW for all else: more learnt a step, "
        "and a step costs more.",
    )
    lr: float = Field(default=1e-3, gt=0, description="Learning rate after warm-up.")
    warmup_steps: int = Field(default=100, ge=0, description="Steps over which the learning rate rises from 0.")
    schedule: Added[ScheduleConfig] = Field(
        default=CosineSchedule(), description="How it goes from there: cosine, constant, or wsd (constant, then down)."
    )
    final_lr_fraction: float = Field(
        default=0.05, ge=0, le=1, description="Learning rate at the last step, as a part of lr."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled decay; matrices only, not biases or gains.")
    betas: tuple[float, float] = Field(default=(0.9, 0.99), description="Decay of AdamW's two moments.")
    grad_clip: float = Field(default=1.0, gt=0, description="Largest norm of the whole gradient.")


class KeepBestConfig(Config):
    """Publish the averaged weights of the validation with the lowest loss, not those of the last step."""

    metric: str = Field(
        default="val/loss",
        pattern="^val/",
        description="A held-out loss by its name in the history, as val/loss_by_keep/1.",
    )


class StopEarlyConfig(KeepBestConfig):
    """End a training that no longer gets better."""

    patience: int = Field(gt=0, description="Validations in a row without a new lowest loss.")


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
    further_ema_decays: Added[tuple[EmaDecay, ...]] = Field(
        default=(),
        description="Decays of averages beside it; each is saved as a checkpoint in the folder `averages` of the trained one.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the initial weights, the sample order and all draws.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of the matrix products; auto is bfloat16 where the machine computes it natively."
    )
    gradient_accumulation_steps: Operational[int] = Field(
        default=1,
        gt=0,
        description="Slices in which each worker's part of a batch goes through the model, one after the other: less "
        "memory for activations, the same step.",
    )
    keep_best: Added[KeepBestConfig | None] = Field(
        default=None, description="Publish the best validation's weights; null: those of the last step."
    )
    stop_early: Added[StopEarlyConfig | None] = Field(
        default=None, description="End where validations get no better; null: after `steps`."
    )
    skip_spikes: Added[float | None] = Field(
        default=None,
        gt=0,
        description="Leave a step out whose gradient is not finite, or whose norm is above the median of the last 200 steps "
        "by so many median deviations (5 to 10 are usual); null: none. Waits for the device in each step.",
    )
    checkpoint_every: Operational[int] = Field(
        default=500, gt=0, description="Steps between training states a killed run resumes from."
    )
    keep_states: Operational[int] = Field(default=1, gt=0, description="The newest training states, which are kept.")
    log_every: Operational[int] = Field(default=50, gt=0, description="Steps between rows of the history.")
    validate_every: Operational[int | None] = Field(
        default=None, gt=0, description="Steps between held-out losses; none when null."
    )
    validation_samples: Operational[int] = Field(
        default=512, gt=0, description="Held-out samples that a validation looks at."
    )
    sinks: Operational[tuple[SinkConfig, ...]] = Field(
        default=(),
        description="Where the history goes while it is recorded, beside the checkpoint: tensorboard, wandb, mlflow, by "
        "name or with settings.",
    )

    @property
    def is_judged(self) -> bool:
        """Whether held-out losses decide which weights are published."""
        return self.keep_best is not None or self.stop_early is not None

    def content(self) -> dict[str, Any]:
        """With what says how validations are made, where these decide."""
        decides = ("validate_every", "validation_samples") if self.is_judged else ()
        return {**super().content(), **{name: getattr(self, name) for name in decides}}

    @field_validator("sinks", mode="before")
    @classmethod
    def _sinks_by_name(cls, value: Any) -> Any:
        return named_sinks(value)


class AugmentationConfig(Config):
    """How pictures are changed at each visit, by draws that depend on the seed and the visit alone."""

    horizontal_flip: float = Field(default=0.0, ge=0, le=1, description="Part of the visits that see them flipped.")
    crop: tuple[float, float] | None = Field(
        default=None,
        description="Least and largest side of a random square, as a part of the short side; null: the centre, all of it.",
    )

    @model_validator(mode="after")
    def _within_the_picture(self) -> "AugmentationConfig":
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"expected crop as [low, high] with 0 < low <= high <= 1, found {list(self.crop)}")
        return self


class PerceptualConfig(Config):
    """A perceptual term in an autoencoder's loss, in the form of LPIPS, by EfficientNet-Lite0: see train/perceptual.py."""

    weight: float = Field(default=0.1, gt=0, description="Of the distance beside the autoencoder's own losses.")
    input_px: int = Field(
        default=64,
        ge=32,
        multiple_of=32,
        description="The network looks at pictures resized to this; it decides the cost.",
    )
    scales: int = Field(
        default=5,
        ge=1,
        le=5,
        description="So many of its maps are compared, from a half to a 32nd of the side; fewer cost less.",
    )


class DiscriminatorConfig(Config):
    """A patch discriminator that an autoencoder's reconstructions are to deceive: see train/adversarial.py."""

    weight: float = Field(
        default=0.5, gt=0, description="Of its loss, times the adaptive weight that makes it as strong as the others."
    )
    start_step: int = Field(
        default=0,
        ge=0,
        description="The step from which it judges and learns: once reconstructions are good otherwise.",
    )
    channels: int = Field(
        default=64, gt=0, description="Width of its first convolution; the widest has eight times it."
    )
    layers: int = Field(
        default=3, ge=1, description="Convolutions that halve the picture; with 3 it judges patches of 70 pixels."
    )
    lr: float = Field(default=1e-4, gt=0, description="Its learning rate, which is constant.")
    betas: tuple[float, float] = Field(default=(0.5, 0.9), description="Decay of the two moments of its AdamW.")

    def optimizer(self) -> OptimizerConfig:
        """What it is trained by; its weights do not decay."""
        return OptimizerConfig(lr=self.lr, betas=self.betas, weight_decay=0.0)


class AutoencoderTrainConfig(TrainConfig):
    """The training of an autoencoder."""

    perceptual: Added[PerceptualConfig | None] = Field(
        default=None, description="A perceptual term in the loss, recorded as `train/loss/perceptual`; null: none."
    )

    discriminator: Added[DiscriminatorConfig | None] = Field(
        default=None, description="A patch discriminator and its adversarial loss (as VQGAN); null: none."
    )

    augmentation: Added[AugmentationConfig] = Field(
        default=AugmentationConfig(), description="Flips and crops of its pictures; none by default."
    )

    autoencoder: AutoencoderTrainingConfig = Field(
        default=ConvTraining(), description="What the training of an autoencoder of its kind reads."
    )

    @model_validator(mode="after")
    def _discriminator_begins(self) -> "AutoencoderTrainConfig":
        if self.discriminator is not None and self.discriminator.start_step >= self.steps:
            raise ValueError(
                f"discriminator.start_step: expected less than the {self.steps} steps, found "
                f"{self.discriminator.start_step}"
            )
        return self


class AutoencoderRecipe(Config):
    """What decides the autoencoder whose latents the tokenizer works on."""

    model: AutoencoderConfig = Field(description="Its architecture.")
    train: AutoencoderTrainConfig | None = Field(
        default=None, description="How it is trained; null when `pretrained` is given."
    )
    pretrained: str | None = Field(
        default=None,
        description="Folder or Hub id of diffusers weights to take instead of training (kind autoencoder_kl).",
    )
    pretrained_sha256: Added[str | None] = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="Hash of their diffusion_pytorch_model.safetensors, the only one that will do; null: whatever lies there.",
    )

    @model_validator(mode="before")
    @classmethod
    def _training_of_its_kind(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        train = AUTOENCODER_TRAINING.told(values.get("train"), "autoencoder", values.get("model"))
        return {**values, "train": train} if "train" in values else values

    @model_validator(mode="after")
    def _one_origin(self) -> "AutoencoderRecipe":
        if (self.train is None) == (self.pretrained is None):
            raise ValueError("exactly one of 'train' and 'pretrained' must be given")
        if self.pretrained_sha256 is not None and self.pretrained is None:
            raise ValueError("pretrained_sha256: expected it with 'pretrained', found no 'pretrained'")
        if self.pretrained is not None and not self.model.has_pretrained:
            raise ValueError(f"'pretrained' needs model.kind autoencoder_kl, not {self.model.kind}")
        if self.train is not None:
            _check_kind("autoencoder", self.train.autoencoder.kind, "model", self.model.kind)
        return self


class DecoderOnlyConfig(Config):
    """The end of a tokenizer's training, in which encoder and tokens stay as they are and only the decoder learns.

    A step costs less then, as each image's tokens are computed once. FlowMo (arXiv 2503.11056) and the second stage of TiTok
    (arXiv 2406.07550) train so.
    """

    from_step: int = Field(
        gt=0, description="The step that it begins with; the encoder has its averaged weights from there."
    )
    keep_mode: KeepMode | None = Field(
        default=None, description="How many tokens nested dropout keeps there; null: as before."
    )


class HeldOutDecodingConfig(SamplerConfig):
    """Held-out images that are decoded while a tokenizer is trained, by its averaged weights."""

    images: int = Field(gt=0, description="The first so many of the held-out split.")
    keep: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(), description="Numbers of tokens they are decoded from; empty: powers of four, and all."
    )

    def keeps(self, registers: int) -> list[int]:
        """The numbers of tokens for a tokenizer with so many."""
        powers = (4**power for power in range(registers.bit_length()))
        return list(self.keep) or [*(power for power in powers if power < registers), registers]


class PicturesConfig(HeldOutDecodingConfig):
    """Pictures of held-out images, for sinks that take some and as files in `.logs/pictures` beside the checkpoints."""

    every: int = Field(gt=0, description="Steps between them.")
    images: int = Field(default=8, gt=0, le=64, description="The first so many of the held-out split.")


class ValidateFdConfig(HeldOutDecodingConfig):
    """`val/fd_efficientnet_lite0/<tokens>` at each validation: the Frechet distance of decoded images from the same originals."""

    images: int = Field(default=256, ge=2, description="The first so many of the held-out split.")
    input_px: int = Field(
        default=128, ge=32, multiple_of=32, description="The network looks at images resized to this."
    )


class TokenizerTrainConfig(TrainConfig):
    """The training of a tokenizer: its draws, and what of its parts only their training reads."""

    mup_base_width: Added[BaseWidth] = None
    keep_mode: KeepMode = Field(default="uniform", description="How many tokens nested dropout keeps in training.")
    augmentation: Added[AugmentationConfig] = Field(
        default=AugmentationConfig(),
        description="Flips and crops of its pictures; none by default. With crops no latents are kept in memory.",
    )
    decoder_only: Added[DecoderOnlyConfig | None] = Field(
        default=None, description="Its end, in which only the decoder learns; null: all learn to the end."
    )
    condition_dropout: float = Field(
        default=0.1, ge=0, le=1, description="Share of images trained without their tokens."
    )
    quantizer: QuantizerTrainingConfig = Field(
        default=QuantizerTraining(kind="fsq"), description="What the training of a quantizer of its kind reads."
    )
    decoder: DecoderTrainingConfig = Field(
        default=FlowTraining(), description="What the training of a decoder of its kind reads."
    )
    loss_weights: dict[str, float] = Field(
        default_factory=dict, description="Weights of losses by name, of decoder and quantizer; 1 where none is given."
    )
    pictures: Operational[PicturesConfig | None] = Field(
        default=None, description="Held-out images drawn while it is trained; null: none."
    )
    validate_fd: Operational[ValidateFdConfig | None] = Field(
        default=None, description="A Frechet distance in each validation; null: none."
    )

    def content(self) -> dict[str, Any]:
        """With how the distance is measured, where validations decide."""
        distance = self.validate_fd if self.is_judged else None
        return {**super().content(), **({"validate_fd": distance.content()} if distance is not None else {})}

    @model_validator(mode="after")
    def _ends_within(self) -> "TokenizerTrainConfig":
        if self.validate_fd is not None and self.validate_every is None:
            raise ValueError("validate_fd: expected it with validate_every, found none")
        if self.decoder_only is not None and self.decoder_only.from_step >= self.steps:
            raise ValueError(
                f"decoder_only.from_step: expected less than the {self.steps} steps, found {self.decoder_only.from_step}; "
                "lower it too, or set decoder_only to null"
            )
        return self


TokenizerPart = Literal["encoder", "quantizer", "decoder"]


class InitFromConfig(Config):
    """The tokenizer whose weights a training begins from.

    It must be as the recipe's model is, on the same latents, but for registers (cut to the first, or grown by new ones)
    and image size.
    """

    checkpoint: str = Field(
        description="Folder of a tokenizer, FOLDER@ALIAS, or one in the official layout (folder or file)."
    )
    digest: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="The only one that will do; null: whatever lies there, and another one makes the tokenizer stale.",
    )
    freeze: tuple[TokenizerPart, ...] = Field(default=(), description="Parts whose weights stay as they are.")


class TokenizerRecipe(Config):
    """What decides the tokenizer's weights."""

    model: TokenizerModelConfig = Field(description="Its architecture; latents and image size come from the pipeline.")
    train: TokenizerTrainConfig = Field(description="How it is trained.")
    init_from: Added[InitFromConfig | None] = Field(
        default=None, description="A tokenizer to fine-tune; null: training begins from new weights."
    )

    @model_validator(mode="before")
    @classmethod
    def _training_of_its_kinds(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        model, train = values.get("model"), values.get("train")
        for part, training in (("quantizer", QUANTIZER_TRAINING), ("decoder", DECODER_TRAINING)):
            chosen = model.get(part, {}) if isinstance(model, Mapping) else getattr(model, part, None)
            train = training.told(train, part, chosen)
        return {**values, "train": train} if "train" in values else values

    @model_validator(mode="after")
    def _kinds_agree(self) -> "TokenizerRecipe":
        _check_kind("quantizer", self.train.quantizer.kind, "model.quantizer", self.model.quantizer.kind)
        _check_kind("decoder", self.train.decoder.kind, "model.decoder", self.model.decoder.kind)
        return self

    @model_validator(mode="after")
    def _decoder_learns_in_the_end(self) -> "TokenizerRecipe":
        frozen = self.init_from.freeze if self.init_from is not None else ()
        if self.train.decoder_only is not None and "decoder" in frozen:
            raise ValueError("init_from.freeze: expected a decoder that learns in train.decoder_only, found it frozen")
        return self

    @model_validator(mode="after")
    def _heads_fit(self) -> "TokenizerRecipe":
        for trunk in self.model.trunks().values():
            _check_heads(self.train.mup_base_width, trunk)
        return self

    @model_validator(mode="after")
    def _enough_tokens(self) -> "TokenizerRecipe":
        for name in ("pictures", "validate_fd"):
            most = max(getattr(getattr(self.train, name), "keep", ()), default=0)
            if most > self.model.registers:
                raise ValueError(
                    f"train.{name}.keep: expected at most the {self.model.registers} registers, found {most}"
                )
        return self


class PriorTrainConfig(TrainConfig):
    """The training of a prior."""

    mup_base_width: Added[BaseWidth] = None
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Of each residual branch.")
    condition_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Part of the samples trained without condition."
    )
    z_loss: Added[float] = Field(
        default=0.0, ge=0, description="Weight of the z-loss, which keeps logits from drifting; PaLM took 1e-4."
    )


class PriorRecipe(Config):
    """What decides the prior's weights."""

    model: PriorModel = Field(description="Its architecture; vocabulary and classes come from the tokens.")
    train: PriorTrainConfig = Field(description="How it is trained.")

    @model_validator(mode="after")
    def _heads_fit(self) -> "PriorRecipe":
        _check_heads(self.train.mup_base_width, self.model)
        return self


def _check_kind(section: str, kind: str, part: str, wanted: str) -> None:
    if kind != wanted:
        raise ValueError(f"expected train.{section}.kind '{wanted}', as {part} is, found '{kind}'; leave it out")


def _check_heads(base_width: int | None, trunk: Config) -> None:
    """Heads of a trunk are the same at the base width, only fewer."""
    head_dim = getattr(trunk, "head_dim", 1)
    if base_width is not None and base_width % head_dim:
        raise ValueError(f"expected train.mup_base_width as a multiple of head_dim {head_dim}, found {base_width}")
