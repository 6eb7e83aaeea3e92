"""What a teacher is: a frozen image encoder with spatial features."""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from flextok.errors import IntegrityError, UsageError


class Teacher:
    """Interface of a teacher. It is no module, so that a model trained with it neither trains nor saves it."""

    width: int
    """Numbers in a feature, F."""

    def maps(self, images_B3HW: Tensor) -> Tensor:
        """Features of uint8 images, float32 [B,F,h,w]: h and w are the teacher's own."""
        raise NotImplementedError

    @torch.no_grad()
    def features(self, images_B3HW: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features of uint8 images brought bilinearly to `grid` (rows, columns): float16 [B,P,F], row after row."""
        with torch.autocast(images_B3HW.device.type, enabled=False):
            maps_BFHW = F.interpolate(self.maps(images_B3HW), size=grid, mode="bilinear")
        return maps_BFHW.flatten(2).transpose(1, 2).half()


def check_file(path: Path, sha256: str, remedy: str) -> None:
    """Raises UsageError where a teacher's file is missing, IntegrityError where it has another hash; both end in `remedy`."""
    if not path.is_file():
        raise UsageError(f"expected the teacher's weights at {path}, found no file; {remedy}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"expected the teacher's weights {path} with sha256 {sha256[:12]}, found {found[:12]}; {remedy}"
        )
