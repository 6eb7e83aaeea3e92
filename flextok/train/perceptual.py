"""A perceptual loss for autoencoders: the form of LPIPS over the maps of EfficientNet-Lite0, as the metric of that name."""

from itertools import islice

import torch
from torch import Tensor

from flextok.metrics.perceptual import STAGES, maps_distance
from flextok.model.efficientnet_lite0 import block_outputs, efficientnet_lite0, network_input
from flextok.train.config import PerceptualConfig

EPS = 1e-4
"""Added to norms. With the metric's 1e-10 a place with next to nothing in it would have gradients of 1e10."""


class PerceptualLoss:
    """The loss that `config` asks for. It is no module, so that a model trained with it neither trains nor saves it.

    Raises UsageError where the network's file is missing or another.
    """

    def __init__(self, config: PerceptualConfig, device: torch.device):
        self.weight = config.weight
        self._input_px, self._stages = config.input_px, STAGES[: config.scales]
        self._network = efficientnet_lite0(config.input_px).eval().requires_grad_(False).to(device)

    def __call__(self, reconstructions_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
        """Distance [B] of `reconstructions_B3HW` to `images_B3HW`, both in [-1,1], without the weight: float32, 0 for equal
        ones, at most 4 for each scale. Gradients reach the reconstructions alone.
        """
        with torch.autocast(images_B3HW.device.type, enabled=False):
            with torch.no_grad():
                originals = self._maps(images_B3HW)
            pairs = zip(self._maps(reconstructions_B3HW), originals, strict=True)
            return torch.stack([maps_distance(*pair, eps=EPS) for pair in pairs]).sum(dim=0)

    def _maps(self, images_B3HW: Tensor) -> list[Tensor]:
        x = network_input((images_B3HW.float() + 1) * 127.5, self._input_px)
        outputs = islice(block_outputs(self._network, x), self._stages[-1] + 1)
        return [output for index, output in enumerate(outputs) if index in self._stages]
