"""How alike an image and its original are in the features of one network: the cosine of their pooled features.

EfficientNet-Lite0 needs no download. DINO and CLIP are read from a folder as transformers saves it, where that is installed.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flextok.metrics.base import IMAGE_METRICS, ImageMetric
from flextok.metrics.networks import device, efficientnet_record, network_from_folder, of_pairs, shared_efficientnet
from flextok.metrics.weights import WeightsConfig, without_weights

if TYPE_CHECKING:
    from torch import Tensor

DEFINITION = "cosine of an image's pooled features and its original's, by {by}, per image, then averaged over images"
WEIGHTS_FILE = "model.safetensors"


def cosine(features_2D: "Tensor") -> float:
    """Of two feature vectors, in [-1, 1]."""
    image, original = features_2D.double()
    return float(image @ original / (image.norm() * original.norm()))


def efficientnet_features(images_BCHW: "Tensor") -> "Tensor":
    """[B, 1280], the mean over places of its last map: what the extractor of that name gives."""
    from flextok.model.efficientnet_lite0 import network_input

    return shared_efficientnet().extract_features(network_input(images_BCHW)).mean(dim=(2, 3))


def similarity(
    features: Callable[["Tensor"], "Tensor"], images_BHWC: np.ndarray, originals_BHWC: np.ndarray
) -> np.ndarray:
    """The cosine for each image, float64 [B], of uint8 images; `features` of uint8 [B, 3, H, W] are [B, D]."""
    return of_pairs(lambda pair: cosine(features(pair)), images_BHWC, originals_BHWC)


class FolderNetwork:
    """A vision network of transformers, from a local folder with its `preprocessor_config.json`; nothing is downloaded.

    Raises UsageError where transformers is not installed, or the folder is not there, of another hash or kind.
    """

    def __init__(self, kind: str, config: WeightsConfig):
        config.check(str(Path(config.path) / WEIGHTS_FILE))
        model = "CLIPVisionModelWithProjection" if kind == "clip" else "Dinov2Model"
        self._prepare, self._network = network_from_folder(config.path, model, kind, config.metric)
        self._output = "image_embeds" if kind == "clip" else "pooler_output"

    def features(self, images_BCHW: "Tensor") -> "Tensor":
        """Of uint8 images [B, 3, H, W]: CLIP's projected embedding, DINOv2's class token."""
        pixels = self._prepare(images=list(images_BCHW.cpu()), return_tensors="pt")["pixel_values"]
        return getattr(self._network(pixel_values=pixels.to(device())), self._output)


def _by_folder(kind: str, unmeasured: dict[str, Any], config: WeightsConfig) -> ImageMetric:
    compute = partial(similarity, FolderNetwork(kind, config).features)
    record = {"network": kind, "weights_sha256": config.sha256, "input": "as its preprocessor_config.json says"}
    return ImageMetric(**{**unmeasured, "compute": compute, "record": lambda: record})


def _said(network: str, by: str) -> dict[str, Any]:
    return {
        "name": f"feature_similarity_{network}",
        "label": f"Feature similarity ({by})",
        "definition": DEFINITION.format(by=by),
        "unit": "",
        "better": "higher",
        "hint": "likeness of what there is to see; 1 is equal",
    }


IMAGE_METRICS.register(
    ImageMetric(
        **_said("efficientnet_lite0", "EfficientNet-Lite0"),
        compute=partial(similarity, efficientnet_features),
        record=efficientnet_record,
    )
)
for _kind, _by in (("dinov2", "DINOv2's class token"), ("clip", "CLIP's image embedding")):
    _metric = _said(_kind, f"{_by}, from a folder that is given (evaluation.weights)")
    IMAGE_METRICS.register(
        ImageMetric(**_metric, compute=without_weights, of_weights=partial(_by_folder, _kind, _metric))
    )
