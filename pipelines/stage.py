"""What a stage of the pipeline is, and the register of them. The rows are in pipelines.stages.

A stage knows nothing of Dagster. The same body runs as an asset (pipelines.assets) and as a command (`flextok train`):
they differ only in how they find the latest artifact of another stage, which is what `StageRun` tells.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flextok.config import Config
from flextok.digests import digest_of
from flextok.registry import Register
from pipelines.partitions import partition_key
from pipelines.recipe import Recipe
from pipelines.workspace import Workspace


class StageRun(Protocol):
    """What a body is given."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def workspace(self) -> Workspace: ...

    @property
    def split(self) -> str:
        """The split that a partitioned stage is run for."""
        ...

    def latest(self, stage: str, split: str | None = None, corpus: str | None = None) -> str:
        """URL of the latest artifact of a stage (its `split`, of the recipe's corpus unless another is named).

        Raises FlextokError when there is none.
        """
        ...


@dataclass(frozen=True)
class Made:
    """What a body gives back: the digest of what it made, where that lies, numbers worth showing, and how it checked out.

    `problems` has a text for each check of the stage, empty where it holds.
    """

    digest: str
    url: str | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


TableRow = Mapping[str, int | float | None]


@dataclass(frozen=True)
class Pictures:
    """A grid of thumbnails as a PNG or JPEG file, and what it shows."""

    file: bytes
    title: str
    """Words of ours."""
    captions: tuple[str, ...] = ()
    """Of each picture or row; any text from anywhere."""


@dataclass(frozen=True)
class Page:
    """What people look for on the page of a stage, beside the numbers of its result."""

    pictures: Pictures | None = None
    curve: bytes | None = None
    """The losses of a training as an SVG file."""
    table: Sequence[TableRow] = ()
    """Metrics, a row for each number of tokens `K`."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Curves as a line of text, by name."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Paths or URLs by name."""
    numbers: Mapping[str, int | float] = field(default_factory=dict)
    size_bytes: int | None = None
    """Of what was made."""
    images: int | None = None
    """How many it worked on."""
    workers: int = 0
    """Processes that work at a time and hold the GPUs that were asked for; 0 for work without any."""


@dataclass(frozen=True)
class Check:
    """A check that a stage makes of its own result. One that blocks fails the stage; another one only warns."""

    name: str
    description: str
    blocking: bool = False


@dataclass(frozen=True)
class Dep:
    """A stage that is read; of a partitioned one, a stage without partitions reads only some."""

    stage: str
    reads: tuple[str, ...] | Callable[[Recipe], tuple[str, ...]] = ()
    """Splits of the profile's corpus, or the partitions, where they depend on the recipe."""
    added: bool = False
    """Whether it came later, for what was worked out in place before: results that were made without it remain valid."""

    def partitions(self, recipe: Recipe) -> tuple[str, ...]:
        """The partitions that are read; none where all are, or the one that is made."""
        if callable(self.reads):
            return self.reads(recipe)
        return tuple(partition_key(recipe.corpus.name, split) for split in self.reads)


@dataclass(frozen=True)
class Stage:
    """One stage: everything that assets, `status`, commands, lineage and documents say of it."""

    name: str
    makes: str
    """One line: what it makes."""
    group: str
    kinds: tuple[str, ...]
    """What works in it, as Dagster's UI shows."""
    version: int
    """Raised when the same settings and inputs would give another result."""
    settings: Callable[[Recipe], Mapping[str, Any]]
    """The settings it reads, by their dotted names in the recipe; of sections, what is operational is left out."""
    run: Callable[[StageRun], Made]
    deps: tuple[Dep, ...] = ()
    partitioned: bool = False
    """Whether it is made for each split on its own."""
    checks: tuple[Check, ...] = ()
    folder: str = ""
    """Where its artifact lies in the workspace."""
    by_corpus: bool = False
    """Whether its settings are those of a partition's corpus. The data version of `corpus` tells of them then: a code
    version would be that of all partitions."""
    unchanged: Callable[[Recipe, str, str | None], bool] | None = None
    """For a stage that only looks at the outside world: whether a split there is what a data version stands for."""
    page: Callable[[StageRun, Made], Page] = lambda run, made: Page()
    """What its page shows of a result; decides nothing."""
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    """Whether a recipe has this stage at all; what would read it reads nothing in its place elsewhere."""

    def content(self, recipe: Recipe) -> dict[str, Any]:
        """The deciding content of the settings it reads, as plain values by dotted name."""
        return {name: _plain(value) for name, value in self.settings(recipe).items()}

    def code_version(self, recipe: Recipe) -> str:
        """Changes when the stage's version or a deciding setting that it reads does, but for those of a corpus."""
        return str(self.version) if self.by_corpus else f"{self.version}+{digest_of(self.content(recipe))[:12]}"


STAGES: Register[Stage] = Register("stage")
"""All stages by name, in an order in which they can be built."""


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages that a recipe has, in this order."""
    return [stage for stage in STAGES if stage.wanted(recipe)]


def register(stage: Stage) -> Stage:
    """Add a stage to the pipeline of every profile."""
    return STAGES.add(stage.name, stage)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.content()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
