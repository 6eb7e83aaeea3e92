"""A perceptual distance in the form of LPIPS, by a network whose weights need no download and with no learned weights.

It is no LPIPS: other features, and no judgement of people in it. It is named by its network.
"""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from flextok.metrics.base import IMAGE_METRICS, ImageMetric
from flextok.metrics.networks import efficientnet_record, of_pairs, shared_efficientnet

if TYPE_CHECKING:
    from torch import Tensor

STAGES = (0, 2, 4, 10, 15)
"""Last blocks of EfficientNet-Lite0 at a half, 4th, 8th, 16th and 32nd of its input's side."""
EPS = 1e-10
"""Of LPIPS: keeps the norm of an empty place from being 0."""


def maps_distance(
    maps_BCHW: "Tensor", originals_BCHW: "Tensor", weights_C: "Tensor | None" = None, eps: float = EPS
) -> "Tensor":
    """[B]: channels scaled to norm 1 at each place, squared differences, weighted and summed over channels, mean over
    places (Zhang et al. 2018, eq. 1, of one stage). At most 4 without weights.
    """
    images, originals = (x / (x.norm(dim=1, keepdim=True) + eps) for x in (maps_BCHW, originals_BCHW))
    squared_BCHW = (images - originals) ** 2
    if weights_C is not None:
        squared_BCHW = squared_BCHW * weights_C[:, None, None]
    return squared_BCHW.sum(dim=1).flatten(1).mean(dim=1)


def stages_distance(stages_2CHW: "Sequence[Tensor]", weights_C: "Sequence[Tensor] | None" = None) -> float:
    """Distance of a pair by its maps [2, C, H, W] of several stages: the sum of `maps_distance` over them, in float64."""
    total = 0.0
    for index, map_2CHW in enumerate(stages_2CHW):
        image_1CHW, original_1CHW = map_2CHW.double().split(1)
        weights = weights_C[index].double() if weights_C is not None else None
        total += maps_distance(image_1CHW, original_1CHW, weights).item()
    return total


def perceptual(images_BHWC: np.ndarray, originals_BHWC: np.ndarray) -> np.ndarray:
    """The distance of each image by EfficientNet-Lite0, float64 [B], 0 for equal images, of uint8 images of any size."""
    return of_pairs(lambda pair: stages_distance(_stages(pair)), images_BHWC, originals_BHWC)


def _stages(images_BCHW: "Tensor") -> "list[Tensor]":
    """Outputs of the blocks `STAGES`; the network is run as far as the last of them."""
    from flextok.model.efficientnet_lite0 import block_outputs, network_input

    outputs = block_outputs(shared_efficientnet(), network_input(images_BCHW))
    return [output for index, output in enumerate(islice(outputs, STAGES[-1] + 1)) if index in STAGES]


IMAGE_METRICS.register(
    ImageMetric(
        name="perceptual_efficientnet_lite0",
        label="Perceptual distance (EfficientNet-Lite0)",
        definition="of EfficientNet-Lite0's maps at 5 scales: channels scaled to norm 1 at each place, squared differences "
        "summed over channels, mean over places, sum over scales; the form of LPIPS without its learned weights, no LPIPS",
        unit="",
        better="lower",
        hint="difference as a network of photographs sees it; 0 is equal",
        compute=perceptual,
        record=lambda: {**efficientnet_record(), "blocks": list(STAGES)},
    ),
)
