"""Pictures of a training as PNG files, `.logs/pictures/<training>/step_N.png` beside its checkpoints, on a disk or S3.

No recipe names it: it is there where a training draws pictures.
"""

from typing import ClassVar, Literal

import numpy as np

from flextok import storage
from flextok.data.images import to_png
from flextok.train.sinks.base import LOGS, HistoryRow, RunInfo, SinkSettings


class PictureFilesConfig(SinkSettings):
    """Where they lie is decided by the training."""

    kind: Literal["pictures"] = "pictures"
    package: ClassVar[str] = "PIL"

    def open(self, run: RunInfo, first_step: int) -> "_PictureFiles":
        return _PictureFiles(storage.join(run.parent_url, LOGS, self.kind, run.name))


class _PictureFiles:
    def __init__(self, url: str):
        self._url = url

    def write(self, rows: list[HistoryRow]) -> None:
        """Rows go elsewhere."""

    def show(self, step: int, picture_HWC: np.ndarray) -> None:
        storage.write_bytes(storage.join(self._url, f"step_{step:09d}.png"), to_png(picture_HWC))

    def close(self, is_finished: bool) -> None:
        """Each file is written to its end."""
