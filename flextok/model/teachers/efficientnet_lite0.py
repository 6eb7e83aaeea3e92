"""EfficientNet-Lite0's spatial features as a teacher's."""

from itertools import islice

import torch
from torch import Tensor

from flextok.model.efficientnet_lite0 import SPATIAL_BLOCK, block_outputs, efficientnet_lite0, network_input
from flextok.model.teachers.base import Teacher
from flextok.model.teachers.config import EfficientNetLite0Config


class EfficientNetLite0Teacher(Teacher):
    """The map of its last block with a place for each 16 x 16 pixels."""

    width = 112

    def __init__(self, config: EfficientNetLite0Config, device: torch.device):
        self._input_px = config.input_px
        self._network = efficientnet_lite0(config.input_px).eval().requires_grad_(False).to(device)

    def maps(self, images_B3HW: Tensor) -> Tensor:
        """See `Teacher.maps`."""
        outputs = block_outputs(self._network, network_input(images_B3HW, self._input_px))
        return next(islice(outputs, SPATIAL_BLOCK, None))
