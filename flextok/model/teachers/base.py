"""What a teacher is: a frozen image encoder with spatial features."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
