"""Whether samples show what they were to show: the class that a classifier of ImageNet sees, and CLIP's score of a caption.

EfficientNet-Lite0 needs no download. CLIP is read from a folder as transformers saves it, where that is installed.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flextok.errors import UsageError
from flextok.metrics.base import SAMPLE_METRICS, SampleMetric
from flextok.metrics.networks import device, efficientnet_record, shared_efficientnet
from flextok.metrics.similarity import WEIGHTS_FILE, efficientnet_features
from flextok.metrics.synsets import SYNSETS
from flextok.metrics.weights import WeightsConfig, without_weights

MOST_WORDS = 77
"""Tokens of a caption that CLIP reads."""


def class_accuracy(images_BHWC: np.ndarray, names: Sequence[str], best: int) -> np.ndarray:
    """1.0 for each image whose class, a synset, is among the `best` that the classifier finds most likely, else 0.0.

    Raises UsageError for classes that are not ImageNet's.
    """
    import torch

    unknown = [name for name in names if name not in SYNSETS]
    if unknown:
        raise UsageError(
            f"expected classes named by ImageNet's synsets (n01440764) for class_accuracy, found {unknown[0]!r}; leave it "
            "out of evaluation.sample_metrics"
        )
    wanted_B = torch.tensor([SYNSETS.index(name) for name in names])
    network: Any = shared_efficientnet()
    with torch.inference_mode():
        features = efficientnet_features(torch.tensor(images_BHWC, device=device()).permute(0, 3, 1, 2))
        found = network._fc(features).topk(best, dim=1).indices.cpu()
    return (found == wanted_B[:, None]).any(dim=1).double().numpy()


class ClipScore:
    """CLIP's score (Hessel et al. 2021) by a model of transformers in a local folder, with its tokenizer; no download.

    Raises UsageError where transformers is not installed, or the folder is not there, of another hash or kind.
    """

    def __init__(self, config: WeightsConfig):
        config.check(str(Path(config.path) / WEIGHTS_FILE))
        from flextok.model.transformers_package import import_transformers

        transformers = import_transformers(config.metric)
        from_folder = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._prepare: Any = transformers.AutoImageProcessor.from_pretrained(config.path, **from_folder)
            self._read: Any = transformers.AutoTokenizer.from_pretrained(config.path, **from_folder)
            network = transformers.CLIPModel.from_pretrained(config.path, use_safetensors=True, **from_folder)
        except (OSError, ValueError) as error:
            told = " ".join(str(error).split())
            raise UsageError(f"expected a CLIP of transformers in {config.path}, found: {told}") from None
        self._network = network.float().requires_grad_(False).eval().to(device())

    def __call__(self, images_BHWC: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """100 max(cosine of image and caption, 0) of each image, float64 [B]."""
        import torch

        pixels = self._prepare(images=list(images_BHWC), return_tensors="pt")["pixel_values"]
        limits = {"padding": True, "truncation": True, "max_length": MOST_WORDS}
        words = self._read(list(texts), return_tensors="pt", **limits)
        ids, mask = words["input_ids"].to(device()), words["attention_mask"].to(device())
        found = self._network(input_ids=ids, attention_mask=mask, pixel_values=pixels.to(device()))
        cosine = torch.nn.functional.cosine_similarity(found.image_embeds.double(), found.text_embeds.double())
        return (100 * cosine.clamp(min=0)).cpu().numpy()


def _clip_score(config: WeightsConfig) -> SampleMetric:
    record = {"network": "clip", "weights_sha256": config.sha256, "template": "the caption itself"}
    return SampleMetric(**{**CLIP, "compute": ClipScore(config), "record": lambda: record})


for _name, _best in (("class_accuracy", 1), ("class_accuracy_top5", 5)):
    SAMPLE_METRICS.register(
        SampleMetric(
            name=_name,
            label=f"Class accuracy, top {_best}",
            definition=f"share of images whose class is among the {_best} most likely of EfficientNet-Lite0; classes named by "
            "ImageNet's synsets",
            unit="fraction",
            better="higher",
            hint="whether a classifier sees what was asked for",
            condition="class",
            compute=partial(class_accuracy, best=_best),
            record=efficientnet_record,
        )
    )
CLIP: dict[str, Any] = {
    "name": "clip_score",
    "label": "CLIP score",
    "definition": "100 max(cosine of CLIP's embeddings of image and caption, 0), per image, then averaged over images; the "
    "model from a folder that is given (evaluation.sample_weights)",
    "unit": "",
    "better": "higher",
    "hint": "how well pictures fit their captions",
    "condition": "text",
}
SAMPLE_METRICS.register(SampleMetric(**CLIP, compute=without_weights, of_weights=_clip_score))
