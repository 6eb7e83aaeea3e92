"""The recipe: all settings of a profile, in one strict YAML file.

Profiles are configs/<name>.yaml or a file of one's own. Each setting says at its owner whether it decides a result or only
how the work is done (`Operational`). A stage's code version is its own version and the digest of the deciding settings it
reads, so that editing the learning rate makes the tokenizer stale and editing the report's title only the report.
"""

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from flextok.config import Added, Config, Operational, parse_config
from flextok.data.config import CorpusConfig
from flextok.errors import UsageError

# Settings only: the modules below these names that need torch are imported where they are used.
from flextok.evaluate.config import EvaluationConfig, ReportConfig  # noqa: TID253
from flextok.model.config import TokenizerConfig  # noqa: TID253
from flextok.runtime.compute import ComputeConfig
from flextok.tokenize.config import TokenizeConfig  # noqa: TID253
from flextok.train.config import AutoencoderRecipe, PriorRecipe, TokenizerRecipe  # noqa: TID253
from pipelines.moved import move_keys
from pipelines.partitions import SPLITS, corpus_of, partition_key
from pipelines.schedules import AutomationConfig
from pipelines.workspace import SHIPPED

logger = logging.getLogger(__name__)

DEFAULT_PROFILE = "smoke"
PROFILES = SHIPPED / "configs"


class OtherCorpus(CorpusConfig):
    """A corpus that is tokenized by the profile's tokenizer, which is not trained on it."""

    name: Operational[str] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the corpus and its folder."
    )
    splits: Operational[tuple[Literal["train", "val", "all"], ...]] = Field(
        default=("train", "val"), min_length=1, description="Its splits to shard and tokenize."
    )


class TokensRecipe(TokenizeConfig):
    """Bulk tokenization of the profile's corpus and of others."""

    corpora: Operational[tuple[OtherCorpus, ...]] = Field(
        default=(),
        description="Further corpora to shard and tokenize, each with the settings of a corpus and `splits`.",
    )


class PriorOverCorpora(PriorRecipe):
    """The prior, and the corpora whose tokens it is trained on."""

    corpora: Added[dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]] = Field(
        default={},
        description="Corpora by name and how often an image of each is drawn, relative to the others'; "
        "none named: the profile's own.",
    )


class Recipe(Config):
    """All settings of a profile."""

    name: Operational[str] = Field(
        pattern=r"^[A-Za-z0-9_-]+$", description="The profile's name; its assets are listed under it."
    )
    corpus: CorpusConfig = Field(description="Which images, and how they are sharded.")
    image_size: int = Field(gt=0, description="Side in pixels to which images are cropped for every stage.")
    latents: AutoencoderRecipe = Field(description="The autoencoder whose latents the tokenizer works on.")
    tokenizer: TokenizerRecipe = Field(description="The tokenizer and its training.")
    tokens: TokensRecipe = Field(TokensRecipe.model_validate({}), description="Bulk tokenization.")
    prior: PriorOverCorpora = Field(description="The autoregressive model over the tokens, and its training.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="Reconstructions and samples.")
    report: ReportConfig = Field(default_factory=ReportConfig, description="The HTML report.")
    compute: Operational[ComputeConfig] = Field(
        default_factory=ComputeConfig, description="Where work runs; decides no result."
    )
    automation: Operational[AutomationConfig] = Field(
        default_factory=AutomationConfig, description="When work starts by itself; decides no result."
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Recipe":
        side = self.latents.model.factor * self.tokenizer.model.patch_size
        if self.image_size % side:
            raise ValueError(f"image_size {self.image_size} is not a multiple of latents factor * patch_size = {side}")
        return self

    @model_validator(mode="after")
    def _corpora_differ(self) -> "Recipe":
        names = [self.corpus.name, *(other.name for other in self.tokens.corpora)]
        if len(set(names)) < len(names):
            raise ValueError(f"tokens.corpora and corpus need different names, found {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _prior_corpora_known(self) -> "Recipe":
        known = self._training_splits()
        for name in self.prior.corpora:
            if name not in known:
                raise ValueError(
                    f"prior.corpora: expected corpora with images to train on, of {', '.join(known)}, found '{name}'"
                )
        return self

    def prior_corpora(self) -> list[tuple[str, str, float]]:
        """What the prior is trained on: corpora with the split and the weight of each."""
        splits = self._training_splits()
        weights = self.prior.corpora or {self.corpus.name: 1.0}
        return [(name, splits[name], weight) for name, weight in weights.items()]

    def _training_splits(self) -> dict[str, str]:
        """By corpus, the split that a training may see."""
        others = {other.name: split for other in self.tokens.corpora for split in other.splits if split != "val"}
        return {self.corpus.name: "train", **others}

    def partitions(self) -> list[str]:
        """`<corpus>/<split>` of the profile's corpus and of those that are tokenized too."""
        return [
            *(partition_key(self.corpus.name, split) for split in SPLITS),
            *(partition_key(other.name, split) for other in self.tokens.corpora for split in other.splits),
        ]

    def of_partition(self, partition: str | None) -> "Recipe":
        """The recipe as it is for one partition: `corpus` is the one that it is of."""
        name = corpus_of(partition) if partition else self.corpus.name
        others = {other.name: other for other in self.tokens.corpora}
        return self.model_copy(update={"corpus": others[name]}) if name in others else self

    def tokenizer_config(self) -> TokenizerConfig:
        """The tokenizer's whole architecture: the recipe's, on this recipe's latents and image size."""
        return TokenizerConfig(
            latents=self.latents.model, image_size=self.image_size, **self.tokenizer.model.model_dump()
        )


def check_together(recipes: Sequence[Recipe]) -> None:
    """Raises UsageError for profiles that would write over each other's artifacts in one workspace."""
    profiles: set[str] = set()
    corpora: dict[str, tuple[str, Any]] = {}
    for recipe in recipes:
        if recipe.name in profiles:
            raise UsageError(f"expected profiles with different names, found two called '{recipe.name}'")
        profiles.add(recipe.name)
        for corpus in (recipe.corpus, *recipe.tokens.corpora):
            other, content = corpora.setdefault(corpus.name, (recipe.name, corpus.content()))
            if content != corpus.content():
                raise UsageError(
                    f"expected corpora of one name to have the same settings, found that '{corpus.name}' differs between "
                    f"the profiles {other} and {recipe.name}; give one of them another name"
                )


def profile_names() -> list[str]:
    """Names of the profiles that come with the project."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_recipe(profile: str = DEFAULT_PROFILE, sets: Sequence[str] = ()) -> Recipe:
    """The recipe of a profile (a name or a YAML file) with `sets` ("a.b=value", the value read as YAML) applied.

    Raises UsageError for an unknown profile, YAML that cannot be read, an unknown key (naming the nearest right
    one) or a value out of range.
    """
    path = profile_path(profile)
    try:
        values = yaml.load(path.read_text(), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"expected a profile in {path}, found: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"expected YAML in {path}, found: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"expected a mapping of settings in {path}, found {type(values).__name__}")
    _warn(path.name, move_keys(values, Recipe))
    for item in sets:
        assign(values, item)
        _warn("--set", move_keys(values, Recipe, replace=True))
    return parse_config(Recipe, values, where=str(path) + (" with --set" if sets else ""))


def _warn(where: str, moved: list[tuple[str, str]]) -> None:
    for old, new in moved:
        logger.warning("%s: %s is %s now", where, old, new)


def profile_path(profile: str) -> Path:
    """The file of a profile, a name or a YAML file; raises UsageError where there is none."""
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


def assign(values: dict[str, Any], item: str) -> None:
    """Put "a.b=value" into `values`, the value read as YAML; raises UsageError where it is not of that form."""
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
