"""One random convolution as a teacher, for tests."""

import torch
import torch.nn.functional as F
from torch import Tensor

from flextok.model.teachers.base import Teacher
from flextok.model.teachers.config import RandomConvolutionConfig


class RandomConvolution(Teacher):
    """A patch projection with weights from a seed."""

    def __init__(self, config: RandomConvolutionConfig, device: torch.device):
        self.width, self._stride = config.width, config.stride
        generator = torch.Generator().manual_seed(config.seed)
        shape = (config.width, 3, config.stride, config.stride)
        self._weight = torch.randn(shape, generator=generator).to(device) / config.stride

    def maps(self, images_B3HW: Tensor) -> Tensor:
        """See `Teacher.maps`; images are taken at their own size."""
        return F.conv2d(images_B3HW.float() / 127.5 - 1, self._weight, stride=self._stride)
