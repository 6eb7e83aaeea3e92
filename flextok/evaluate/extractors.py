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
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import register_feature_extractor

from flextok.errors import UsageError
from flextok.model.efficientnet_lite0 import FULL_INPUT_PX, RESIZE, SPATIAL_BLOCK, efficientnet_lite0, network_input

SPATIAL = "spatial"
"""The layer of spatial features, for all that have one."""
SPATIAL_CHANNELS = 7
"""So many of the map's as ADM's evaluator takes."""


def spatial_features(map_BCHW: Tensor) -> Tensor:
    """The first channels of a map at all its places, [B, H * W * 7] in the order of ADM's evaluator: channels last."""
    return map_BCHW[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


class OwnExtractor(FeatureExtractorBase):
    """What ours share: the layers `features`, `classes` (scores before softmax) and `spatial`; plain eager PyTorch."""

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names of the layers on offer."""
        return ("features", "classes", SPATIAL)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The layer that serves `metric`."""
        return "classes" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        """Whether torch.compile is supported."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """An input of the right kind."""
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)


class EfficientNetLite0(OwnExtractor):
    """EfficientNet-Lite0 on uint8 [B, 3, H, W], which are resized to `input_px` inside, 224 as in its training or less.

    `features` [B, 1280]: mean over positions of its last feature map; `classes` [B, 1000]; `spatial`, at 224 px [B, 1372]:
    of the last map with a place for each 16 x 16 pixels, as that of sFID has about.
    """

    resize = RESIZE

    def __init__(self, name: str, features_list: list[str], input_px: int = FULL_INPUT_PX, **_: Any):
        super().__init__(name, features_list)
        if input_px < 32 or input_px % 32:
            raise UsageError(f"expected evaluation.extractor_input_px as a multiple of 32, found {input_px}")
        self.input_px = input_px
        self.network = efficientnet_lite0(input_px)
        self._map = _output_of(self.network._blocks[SPATIAL_BLOCK])

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """The layers that were asked for."""
        features = self.network.extract_features(network_input(input, self.input_px)).mean(dim=(2, 3))
        layers = {
            "features": lambda: features,
            "classes": lambda: self.network._fc(features),
            SPATIAL: lambda: spatial_features(self._map[0]),
        }
        return tuple(layers[name]() for name in self.features_list)


class RandomConv(OwnExtractor):
    """Two strided random convolutions of uint8 [B, 3, H, W].

    `features` [B, 32]: means and spreads over positions of the second; `classes` [B, 16]: the means alone; `spatial`
    [B, 448]: of the first, averaged to 8 x 8 places.
    """

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

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """The layers that were asked for."""
        inner = F.relu(F.conv2d(input.double() / 127.5 - 1, self.first, stride=2, padding=1))
        x = F.conv2d(inner, self.second, stride=2, padding=1).flatten(2)
        means = x.mean(dim=2)
        layers = {
            "features": torch.cat([means, x.std(dim=2)], dim=1),
            "classes": means,
            SPATIAL: spatial_features(F.adaptive_avg_pool2d(inner, 8)),
        }
        return tuple(layers[name] for name in self.features_list)


class Inception(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception network, with the spatial features of ADM's evaluator, [B, 2023], beside its layers.

    They are those of `mixed_6/conv` in TensorFlow's graph, here the first branch of Mixed_6d.
    """

    def __init__(self, name: str, features_list: list[str], **options: Any):
        # The network is run as far as the last layer that it knows; 768 stands just behind the map.
        super().__init__(name, [layer for layer in features_list if layer != SPATIAL] or ["768"], **options)
        self.layers = features_list
        self._map = _output_of(self.Mixed_6d.branch1x1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The layers that were asked for."""
        found = dict(zip(self.features_list, super().forward(x), strict=True))
        return tuple(spatial_features(self._map[0]) if name == SPATIAL else found[name] for name in self.layers)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names of the layers on offer."""
        return (*FeatureExtractorInceptionV3.get_provided_features_list(), SPATIAL)


def _output_of(module: torch.nn.Module) -> list[Tensor]:
    """A list whose one item is what `module` gave last."""
    held: list[Tensor] = []

    def hold(_module: torch.nn.Module, _input: Any, output: Tensor) -> None:
        held[:] = [output]

    module.register_forward_hook(hold)
    return held


register_feature_extractor("efficientnet_lite0", EfficientNetLite0)
register_feature_extractor("random_conv", RandomConv)
IN_PLACE = {"inception-v3-compat": Inception}
"""What stands for an extractor of torch-fidelity's, with the same weights and numbers."""
