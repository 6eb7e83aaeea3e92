"""What a sink is: it takes the rows of a training's history while it goes on. Light to import, as settings name sinks."""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, runtime_checkable

from flextok import storage
from flextok.config import Config
from flextok.errors import UsageError
from flextok.registry import ConfigRegister

if TYPE_CHECKING:
    import numpy as np

HistoryRow = tuple[int, str, float]
"""Steps done, name, value."""
LOGS = ".logs"
"""Folder beside the checkpoints of a kind in which sinks keep their files, unless they are told another."""


@dataclass(frozen=True)
class RunInfo:
    """What a sink may say of the training whose rows it takes."""

    label: str
    """Of the job: tokenizer, prior or vae."""
    fingerprint: str
    """The same for a training that is resumed."""
    parent_url: str
    """Where the job puts its checkpoint."""
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Short and the same after a resume."""
        return f"{self.label}-{self.fingerprint[:12]}"


class Sink(Protocol):
    """An open sink. Whatever it raises is told once, and the training goes on without it."""

    def write(self, rows: list[HistoryRow]) -> None:
        """Take rows that are new, in the order of their steps; a resumed training repeats those after its last state."""
        ...

    def close(self, is_finished: bool) -> None:
        """No more rows come; `is_finished` says whether the training came to its end."""
        ...


@runtime_checkable
class PictureSink(Sink, Protocol):
    """A sink that takes pictures, too."""

    def show(self, step: int, picture_HWC: "np.ndarray") -> None:
        """Take the picture of held-out samples after `step` steps, uint8."""
        ...


class SinkSettings(Config):
    """Base of the settings of a kind of sink."""

    kind: str
    package: ClassVar[str]
    """What it needs to be installed: an extra of this package has the kind's name."""

    def check(self) -> None:
        """Raises UsageError where its package is not installed."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:  # a folder of that name, as W&B leaves behind, is no package
            raise UsageError(
                f"expected the package {self.package} for the sink '{self.kind}', found none; "
                f"pip install 'flextok-pipelines[{self.kind}]', or leave it out of train.sinks"
            )

    def open(self, run: RunInfo, first_step: int) -> Sink:
        """The sink, open for rows from `first_step` on; called in the thread that writes them."""
        raise NotImplementedError


SINKS = ConfigRegister("sink", home="flextok.train.sinks")
SinkConfig = Annotated[SinkSettings, SINKS]


def named_sinks(value: Any) -> Any:
    """Settings of sinks as they may be written: a name alone stands for its kind as it is by default."""
    if not isinstance(value, list | tuple):
        return value
    return [{"kind": item} if isinstance(item, str) else item for item in value]


def local_folder(folder: str | None, run: RunInfo, kind: str) -> Path:
    """Where a sink that writes to a disk keeps its files; UsageError where that is none."""
    url = folder if folder is not None else storage.join(run.parent_url, LOGS, kind)
    if not storage.is_local(url):
        raise UsageError(
            f"expected a folder on a disk for the sink '{kind}', found {storage.redact(url)}; set its folder"
        )
    path = storage.local_path(url)
    path.mkdir(parents=True, exist_ok=True)
    return path


def by_step(rows: list[HistoryRow]) -> Iterable[tuple[int, dict[str, float]]]:
    """Steps with all their values."""
    for step, group in groupby(rows, key=lambda row: row[0]):
        yield step, {name: value for _, name, value in group}
