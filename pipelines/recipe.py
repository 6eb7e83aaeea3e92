"""The recipe: everything that decides the results of a profile, in one strict YAML file.

Profiles are configs/<name>.yaml or a file of one's own. A stage's code version is its own version and the digest of
exactly the settings it reads, so that editing the learning rate makes the tokenizer stale and editing the report's
title only the report. `compute` decides where work runs, never what comes out: no stage reads it.
"""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from flextok.config import Config, parse_config
from flextok.data.config import CorpusConfig
from flextok.digests import digest_of
from flextok.errors import UsageError

# Settings only: the modules below these names that need torch are imported where they are used.
from flextok.evaluate.config import EvaluationConfig, ReportConfig  # noqa: TID253
from flextok.model.config import TokenizerConfig  # noqa: TID253
from flextok.runtime.compute import ComputeConfig
from flextok.tokenize.config import TokenizeConfig  # noqa: TID253
from flextok.train.config import LatentsRecipe, PriorRecipe, TokenizerRecipe  # noqa: TID253
from pipelines.workspace import SHIPPED

DEFAULT_PROFILE = "smoke"
PROFILES = SHIPPED / "configs"

# Stage -> (version of its code, settings it reads). Raise a version when the same settings would give another result.
_DECODER = ("evaluation.steps", "evaluation.guidance", "evaluation.norm_guidance", "evaluation.seed")
_DISTANCE = ("evaluation.extractor", "evaluation.extractor_input_px", "evaluation.distance_images")
STAGES: dict[str, tuple[int, tuple[str, ...]]] = {
    "corpus": (
        1,
        (
            "corpus.source",
            "corpus.sources",
            "corpus.format",
            "corpus.scenes",
            "corpus.label_csv",
            "corpus.captions_file",
        ),
    ),
    "image_shards": (2, ("corpus",)),
    "latents": (1, ("image_size", "latents")),
    "tokenizer": (1, ("image_size", "tokenizer")),
    "reconstructions": (
        1,
        (*_DECODER, *_DISTANCE, "evaluation.keep", "evaluation.max_images", "evaluation.grid_images"),
    ),
    "token_shards": (
        1,
        ("tokens.keep", "tokens.dtype", "tokens.views", "tokens.length", "tokens.max_reject_fraction"),
    ),
    "prior": (1, ("prior",)),
    "samples": (1, (*_DECODER, "evaluation.keep", "evaluation.samples")),
    "fid": (1, (*_DECODER, *_DISTANCE, "evaluation.keep", "evaluation.samples")),
    "report": (1, ("report",)),
}


class Recipe(Config):
    """All settings of a profile."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="The profile's name; its assets stand under it.")
    corpus: CorpusConfig = Field(description="Which images, and how they are sharded.")
    image_size: int = Field(gt=0, description="Side in pixels to which images are cropped for every stage.")
    latents: LatentsRecipe = Field(description="Stage 0: the autoencoder whose latents the tokenizer works on.")
    tokenizer: TokenizerRecipe = Field(description="The tokenizer and its training.")
    tokens: TokenizeConfig = Field(default_factory=TokenizeConfig, description="Bulk tokenization.")
    prior: PriorRecipe = Field(description="The autoregressive model over the tokens, and its training.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="Reconstructions and samples.")
    report: ReportConfig = Field(default_factory=ReportConfig, description="The HTML report.")
    compute: ComputeConfig = Field(default_factory=ComputeConfig, description="Where work runs; decides no result.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Recipe":
        side = self.latents.model.factor * self.tokenizer.model.patch_size
        if self.image_size % side:
            raise ValueError(f"image_size {self.image_size} is not a multiple of latents factor * patch_size = {side}")
        return self

    def tokenizer_config(self) -> TokenizerConfig:
        """The tokenizer's whole architecture: the recipe's, on this recipe's latents and image size."""
        return TokenizerConfig(
            latents=self.latents.model, image_size=self.image_size, **self.tokenizer.model.model_dump()
        )

    def settings(self, stage: str) -> dict[str, Any]:
        """The settings that `stage` reads, as plain values by section."""
        return {section: self._section(section) for section in STAGES[stage][1]}

    def code_version(self, stage: str) -> str:
        """Changes when the stage's code or a setting it reads does."""
        return f"{STAGES[stage][0]}+{digest_of(self.settings(stage))[:12]}"

    def _section(self, dotted: str) -> Any:
        value: Any = self
        for name in dotted.split("."):
            value = getattr(value, name)
        return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.model_dump(mode="json")
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def profile_names() -> list[str]:
    """Names of the profiles that come with the project."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_recipe(profile: str = DEFAULT_PROFILE, sets: tuple[str, ...] | list[str] = ()) -> Recipe:
    """The recipe of a profile (a name or a YAML file) with `sets` ("a.b=value", the value read as YAML) applied.

    Raises UsageError for an unknown profile, YAML that cannot be read, an unknown key (naming the nearest right
    one) or a value out of range.
    """
    path = _profile_path(profile)
    try:
        values = yaml.load(path.read_text(), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"expected a profile in {path}, found: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"expected YAML in {path}, found: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"expected a mapping of settings in {path}, found {type(values).__name__}")
    for item in sets:
        _assign(values, item)
    return parse_config(Recipe, values, where=str(path) + (" with --set" if sets else ""))


def _profile_path(profile: str) -> Path:
    if profile.endswith((".yaml", ".yml")) or "/" in profile:
        path = Path(profile).expanduser()
        if not path.is_file():
            raise UsageError(f"expected a profile file, found none at {path}; give --profile NAME or FILE.yaml")
        return path
    known = profile_names()
    if profile not in known:
        near = difflib.get_close_matches(profile, known, n=1, cutoff=0.0)
        raise UsageError(
            f"expected a profile among {', '.join(known)} or a YAML file, found '{profile}'"
            + (f"; did you mean '{near[0]}'?" if near else "")
        )
    return PROFILES / f"{profile}.yaml"


def _assign(values: dict[str, Any], item: str) -> None:
    dotted, equals, text = item.partition("=")
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise UsageError(f"expected --set dotted.key=value, found --set {item}")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"expected a YAML value in --set {item}, found: {' '.join(str(error).split())}") from None
    section = values
    for depth, name in enumerate(names[:-1]):
        inner = section.get(name)
        if inner is None:
            inner = section[name] = {}
        if not isinstance(inner, dict):
            raise UsageError(
                f"expected a key in --set {item}, found that '{'.'.join(names[: depth + 1])}' is the value {inner!r}"
            )
        section = inner
    section[names[-1]] = value


class _StrictLoader(yaml.SafeLoader):
    """YAML without repeated keys, of which plain YAML silently keeps the last."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", node.start_mark)
    return dict(loader.construct_pairs(node, deep=True))


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
