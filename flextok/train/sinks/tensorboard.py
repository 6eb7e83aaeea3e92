"""Event files of TensorBoard: `tensorboard --logdir workspace/checkpoints/tokenizer/.logs/tensorboard`."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from flextok.train.sinks.base import SINKS, HistoryRow, RunInfo, Sink, SinkSettings, local_folder


@SINKS.register
class TensorBoardConfig(SinkSettings):
    """A folder for each training, with one file for each time that it was begun or resumed."""

    kind: Literal["tensorboard"] = "tensorboard"
    package: ClassVar[str] = "tensorboard"
    folder: str | None = Field(
        default=None,
        description="Folder on a disk for all trainings; null: `.logs/tensorboard` beside the checkpoints.",
    )

    def open(self, run: RunInfo, first_step: int) -> Sink:
        return _TensorBoard(local_folder(self.folder, run, self.kind) / run.name, first_step)


class _TensorBoard:
    def __init__(self, folder: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run wrote after its last state is hidden, as it is written again.
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, rows: list[HistoryRow]) -> None:
        for step, name, value in rows:
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # raises what its own thread met

    def show(self, step: int, picture_HWC: np.ndarray) -> None:
        self._writer.add_image("pictures", picture_HWC, step, dataformats="HWC")
        self._writer.flush()

    def close(self, is_finished: bool) -> None:
        self._writer.close()
