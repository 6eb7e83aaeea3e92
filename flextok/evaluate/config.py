"""Settings of the evaluation: what is decoded, how, and with what it is compared.

A profile has them in one flat section, `EvaluationConfig`. Each evaluation takes the part that it reads, and its recipe
is that part's content.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from flextok.config import Added, Config, Operational
from flextok.data.codecs import CODECS
from flextok.errors import UsageError
from flextok.metrics.base import IMAGE_METRICS, SAMPLE_METRICS, SET_METRICS
from flextok.metrics.recognisers.base import AnyRecogniser
from flextok.metrics.weights import WeightsConfig
from flextok.model.decoders.config import SamplerConfig
from flextok.model.sampling.config import DrawConfig
from flextok.registry import Register

FEWEST_RESAMPLES = 40
"""Of which one lies beyond each end of a 95 % interval."""


def _names_in(register: Register) -> AfterValidator:
    def check(names: Any) -> Any:
        """A name, or several."""
        each = (names,) if isinstance(names, str) else names
        if len(set(each)) < len(each):
            raise ValueError(f"expected each {register.what} once, found {', '.join(each)}")
        for name in each:
            try:
                register[name]
            except UsageError as error:
                raise ValueError(str(error)) from None
        return names

    return AfterValidator(check)


def _require_weights(
    field: str, register: Register[Any], names: tuple[str, ...], weights: tuple[WeightsConfig, ...]
) -> None:
    """Raises ValueError where one of the metrics `names` lacks weights, or `weights` are for none that takes some."""
    takers = {name for name in register.names() if register[name].of_weights is not None}
    given = [each.metric for each in weights]
    if len(set(given)) < len(given) or not set(given) <= takers:
        raise ValueError(
            f"{field}: expected each of {', '.join(sorted(takers))} at most once, found {', '.join(given)}"
        )
    if lacking := (takers & {*names}) - {*given}:
        raise ValueError(
            f"{field}: expected those of {', '.join(sorted(lacking))}, found none; give {{metric, path, sha256}}, see "
            "docs/metrics.md"
        )


class SamplesConfig(DrawConfig):
    """What is drawn from the prior. Its guidance steers the ids; the decoder's own stands in EvaluationConfig."""

    num: int = Field(default=256, gt=0, description="Images to sample, as equally over the classes as can be.")
    keep: tuple[int, ...] | None = Field(
        default=None, description="Token counts to decode each sample at; null: as reconstructions."
    )
    shard_samples: Added[int] = Field(
        default=1000,
        gt=0,
        description="Samples in a shard: what an actor makes at a time, and a run that resumes keeps.",
    )
    pictures: Added[int | None] = Field(
        default=None,
        ge=0,
        description="How many samples, the first ones, keep their pictures; null: all. Of the others there are features.",
    )


class DecodingConfig(SamplerConfig):
    """How tokens become pictures."""

    seed: int = Field(
        default=0, ge=0, description="Seed of the decoder's noise, the prior's draws and the random-token baseline."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32",
        description="Of the tokenizer's matrix products; auto is bfloat16 where the machine computes it natively.",
    )
    batch_size: Operational[int] = Field(
        default=64, gt=0, description="Images decoded at once; decides memory and speed, not results."
    )


class KeepConfig(Config):
    """At how many tokens pictures are decoded."""

    keep: tuple[int, ...] | None = Field(
        default=None, description="Token counts K to decode at; null: 1, 2, 4, ... and all."
    )


class ExtractorWeights(Config):
    """Where the weights of a feature extractor lie, and which they are."""

    path: Operational[str] = Field(description="A file as torch-fidelity publishes it, on this machine.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of that file, as `sha256sum` gives it.")


class SetComparisonConfig(Config):
    """How sets of images are compared with a reference set."""

    set_metrics: Added[Annotated[tuple[str, ...], _names_in(SET_METRICS)]] = Field(
        default=("frechet",),
        min_length=1,
        description="Metrics of sets, by name (docs/metrics.md); the first is checked.",
    )
    bootstrap: Added[int] = Field(
        default=0,
        ge=0,
        description="Resamples for the intervals of metrics of sets, whose features are then kept; 0: no intervals.",
    )
    distance_images: int | None = Field(
        default=None,
        gt=1,
        description="Images of each set that enter the distribution distance; null: all that are decoded.",
    )
    extractor: str = Field(
        default="efficientnet_lite0", description="Feature extractor of the distance, by torch-fidelity name."
    )
    extractor_input_px: int | None = Field(
        default=None,
        gt=0,
        description="Side that efficientnet_lite0 resizes to (multiple of 32); null: 224. Less is faster.",
    )
    extractor_weights: Added[ExtractorWeights | None] = Field(
        default=None,
        description="Weights of inception-v3-compat or vgg16; null: those in torch's hub cache, else fetched.",
    )

    @model_validator(mode="after")
    def _enough_resamples(self) -> "SetComparisonConfig":
        if 0 < self.bootstrap < FEWEST_RESAMPLES:
            raise ValueError(f"bootstrap: expected 0 or at least {FEWEST_RESAMPLES} resamples, found {self.bootstrap}")
        return self


class ReferenceConfig(SetComparisonConfig):
    """What the making of a reference set reads."""

    batch_size: Operational[int] = Field(default=64, gt=0, description="Images looked at at once.")


class ImageComparisonConfig(Config):
    """How images are compared with their originals."""

    metrics: Added[Annotated[tuple[str, ...], _names_in(IMAGE_METRICS)]] = Field(
        default=("mae", "mse", "psnr"),
        min_length=1,
        description="Metrics of images, by name (docs/metrics.md); the first is checked.",
    )
    weights: Added[tuple[WeightsConfig, ...]] = Field(
        default=(), description="Files of weights, for those metrics of images that need one."
    )

    @model_validator(mode="after")
    def _weights_are_given(self) -> "ImageComparisonConfig":
        if not {"metrics", "weights"} & self.model_fields_set:
            return self  # the defaults need none, and the look would import every metric
        _require_weights("weights", IMAGE_METRICS, self.metrics, self.weights)
        return self


class PicturesConfig(SetComparisonConfig, ImageComparisonConfig):
    """What the evaluation of given pictures reads."""


class PerturbationConfig(Config):
    """A grid of perturbations of the tokens before they are decoded (pFID)."""

    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        min_length=1, description="Shares of the tokens that are exchanged."
    )
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1, description="Of how many nearest codes each is exchanged for one."
    )

    @model_validator(mode="after")
    def _each_once(self) -> "PerturbationConfig":
        for name, values in (("shares", self.shares), ("ranks", self.ranks)):
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name}: expected ascending numbers, each once, found {list(values)}")
        return self


class SweepConfig(Config):
    """A grid of settings, all of which are measured. An axis that is null stays as the evaluation has it."""

    keep: tuple[int, ...] | None = Field(default=None, description="Token counts K; null: those of the evaluation.")
    guidance: tuple[float, ...] | None = Field(default=None, description="Guidance of the flow decoder.")
    steps: tuple[int, ...] | None = Field(default=None, description="Euler steps of the flow decoder.")
    temperature: tuple[float, ...] | None = Field(
        default=None, description="Temperature at which the prior draws ids, all positions; of samples only."
    )
    select: str | None = Field(
        default=None, description="Metric (docs/metrics.md) that the best point is chosen by; null: the first of sets."
    )

    @model_validator(mode="after")
    def _values(self) -> "SweepConfig":
        axes = {"keep": self.keep, "guidance": self.guidance, "steps": self.steps, "temperature": self.temperature}
        for name, values in axes.items():
            least = 1 if name in ("keep", "steps") else 0
            if values is not None and (not values or min(values) < least or len(set(values)) < len(values)):
                raise ValueError(f"{name}: expected different values of at least {least}, found {list(values)}")
        return self


class SweptConfig(Config):
    """Whether a grid of settings is measured, too."""

    sweep: Added[SweepConfig | None] = Field(
        default=None, description="A grid of settings to measure beside the evaluation's own, as curves; null: none."
    )


class ReconstructionConfig(DecodingConfig, KeepConfig, PicturesConfig, SweptConfig):
    """What the evaluation of reconstructions reads."""

    codecs: Added[Annotated[tuple[str, ...], _names_in(CODECS)]] = Field(
        default=(),
        description="Picture codecs (jpeg, webp, avif) to measure at as many bytes as tokens take; takes a while.",
    )
    perturbation: Added[PerturbationConfig | None] = Field(
        default=None, description="Tokens to exchange before decoding, for pfd_<share>_<rank>_<extractor>; null: none."
    )
    seeds: Added[int] = Field(
        default=1,
        ge=1,
        description="Seeds of the decoder's noise, from evaluation.seed on, for the spread of numbers; 1: no spread.",
    )
    recognisers: Added[tuple[AnyRecogniser, ...]] = Field(
        default=(),
        description="What reads the words, or knows the faces, that the images' metadata says where they are.",
    )
    slices: Added[tuple[str, ...]] = Field(
        default=(),
        description="Metrics of images also by these: source (of a corpus of several), or fields of the images' metadata.",
    )
    max_images: int | None = Field(default=None, gt=1, description="Images of the split to reconstruct; null: all.")
    allow_training_images: Operational[bool] = Field(
        default=False, description="Also evaluate on images that the tokenizer was trained on; the protocol says so."
    )
    grid_images: int = Field(default=10, ge=0, description="Reconstructions kept as pictures for the report.")

    @model_validator(mode="after")
    def _perturbed_distance_is_measured(self) -> "ReconstructionConfig":
        if self.perturbation is not None and "frechet" not in self.set_metrics:
            raise ValueError("perturbation: expected frechet among set_metrics, found it is not; add it")
        return self

    @model_validator(mode="after")
    def _different_names(self) -> "ReconstructionConfig":
        for field, names in (("recognisers", [each.called for each in self.recognisers]), ("slices", [*self.slices])):
            if len(set(names)) < len(names):
                raise ValueError(f"{field}: expected each once, found {', '.join(names)}")
        return self


class SamplingConfig(DecodingConfig, KeepConfig):
    """What sampling from the prior reads."""

    samples: SamplesConfig = Field(default_factory=SamplesConfig, description="What is drawn from the prior.")


class GenerationConfig(DecodingConfig, SetComparisonConfig, SweptConfig):
    """What the evaluation of samples reads."""

    sample_metrics: Added[Annotated[tuple[str, ...], _names_in(SAMPLE_METRICS)]] = Field(
        default=(), description="Metrics of samples by what they were to show, by name (docs/metrics.md)."
    )
    sample_weights: Added[tuple[WeightsConfig, ...]] = Field(
        default=(), description="Files of weights, for those metrics of samples that need one."
    )

    @model_validator(mode="after")
    def _sample_weights_are_given(self) -> "GenerationConfig":
        if {"sample_metrics", "sample_weights"} & self.model_fields_set:
            _require_weights("sample_weights", SAMPLE_METRICS, self.sample_metrics, self.sample_weights)
        return self


class EvaluationConfig(ReconstructionConfig, SamplingConfig, GenerationConfig, ReferenceConfig):
    """How reconstructions and samples are made and measured. Every deciding field stands in the numbers' protocol."""

    @model_validator(mode="after")
    def _positive_keep(self) -> "EvaluationConfig":
        for name, keep in (("keep", self.keep), ("samples.keep", self.samples.keep)):
            if keep is not None and (not keep or min(keep) < 1):
                raise ValueError(f"{name}: expected token counts of at least 1, found {keep}")
        return self


class OracleConfig(Config):
    """When a reconstruction is close enough: decides how many tokens an image would have needed."""

    metric: Annotated[str, _names_in(IMAGE_METRICS)] = Field(description="Metric of images, one of evaluation.metrics.")
    threshold: float = Field(description="Largest error, or smallest likeness, that is close enough.")


class ReportConfig(Config):
    """What the report shows beyond the numbers of others; changes none of them."""

    title: str = Field(default="FlexTok report", min_length=1, description="Title of the page.")
    samples_per_class: int = Field(default=6, gt=0, description="Samples shown for each class.")
    max_classes: int = Field(default=16, gt=0, description="Classes shown in the grid of samples.")
    oracle: Added[OracleConfig | None] = Field(
        default=None, description="Threshold for the tokens that each image would have needed; null: left out."
    )


def keep_counts(keep: tuple[int, ...] | None, num_tokens: int) -> list[int]:
    """The token counts to decode at, ascending: `keep`, or 1, 2, 4, ... and `num_tokens` itself.

    Raises UsageError for a count beyond `num_tokens`.
    """
    from flextok.model.nested_dropout import nested_lengths

    if keep is None:
        return nested_lengths(num_tokens).tolist()
    if max(keep) > num_tokens:
        raise UsageError(f"expected evaluation.keep within 1..{num_tokens}, the tokenizer's tokens, found {max(keep)}")
    return sorted(set(keep))
