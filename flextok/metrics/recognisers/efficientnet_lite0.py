"""Faces by the features of EfficientNet-Lite0, which needs no download and was never taught faces: a stand-in."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from flextok.metrics.base import Content
from flextok.metrics.networks import device, efficientnet_record
from flextok.metrics.recognisers.base import RECOGNISERS, Recogniser, RecogniserConfig
from flextok.metrics.similarity import efficientnet_features


class EfficientNetFaces(Recogniser):
    """The pooled features of each region."""

    def __init__(self):
        self.record = {"recogniser": "efficientnet_lite0", **efficientnet_record()}

    def __call__(self, regions: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            tensors = (torch.tensor(region, device=device()).permute(2, 0, 1)[None] for region in regions)
            return np.concatenate([efficientnet_features(each).double().cpu().numpy() for each in tensors])


@RECOGNISERS.register
class EfficientNetFacesConfig(RecogniserConfig):
    """Faces by EfficientNet-Lite0."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    looks_for: ClassVar[Content] = "faces"

    def build(self) -> Recogniser:
        return EfficientNetFaces()
