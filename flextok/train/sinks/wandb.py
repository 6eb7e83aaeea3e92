"""Weights & Biases, online or offline; `wandb sync FOLDER` sends what was kept offline."""

import importlib
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from flextok.train.sinks.base import SINKS, HistoryRow, RunInfo, Sink, SinkSettings, by_step, local_folder


@SINKS.register
class WandbConfig(SinkSettings):
    """Key and server come from W&B's own environment variables or from `wandb login`."""

    kind: Literal["wandb"] = "wandb"
    package: ClassVar[str] = "wandb"
    project: str = Field(default="flextok", min_length=1, description="Project of the run.")
    entity: str | None = Field(default=None, description="User or team; null: the key's own.")
    offline: bool = Field(default=False, description="Keep the run in files, without a server.")
    folder: str | None = Field(
        default=None, description="Folder on a disk for its files; null: `.logs/wandb` beside the checkpoints."
    )

    def open(self, run: RunInfo, first_step: int) -> Sink:
        return _Wandb(self, run)


class _Wandb:
    def __init__(self, settings: WandbConfig, run: RunInfo):
        wandb: Any = importlib.import_module("wandb")  # which pyright takes for this module
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode="offline" if settings.offline else None,
            dir=str(local_folder(settings.folder, run, settings.kind)),
            id=run.fingerprint[:32],
            resume="allow",  # a resumed training goes on in the same run
            name=run.name,
            config=run.settings,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def write(self, rows: list[HistoryRow]) -> None:
        for step, values in by_step(rows):
            self._run.log(values, step=step)

    def show(self, step: int, picture_HWC: np.ndarray) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run.log({"pictures": wandb.Image(picture_HWC)}, step=step)

    def close(self, is_finished: bool) -> None:
        self._run.finish(exit_code=0 if is_finished else 1)
