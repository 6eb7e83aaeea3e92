"""Feature extractors of the distribution distances, found by name in torch-fidelity's registry.

Ours (`flextok.evaluate.extractors`) are there beside its own. torch-fidelity's `inception-v3-compat` (the only
one whose distance is called FID), `dinov2-*`, `clip-*` and `vgg16` fetch their weights on first use into torch's
hub cache; on a closed machine put the files there beforehand.
"""

import pickle
import weakref
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from flextok import storage
from flextok.digests import digest_arrays
from flextok.errors import FlextokError, UsageError
from flextok.evaluate.config import ExtractorWeights
from flextok.metrics.base import Layer
from flextok.weights import check_weights

# Images of one pass: bounds memory at 224 px to some hundred MB, whatever the batch of the caller.
PASS_IMAGES = 64
TAKES_WEIGHTS = ("inception-v3-compat", "vgg16")
"""Extractors of torch-fidelity's that read their weights from a file."""


@dataclass(frozen=True)
class Extractor:
    """A feature extractor ready to use."""

    name: str
    module: nn.Module
    device: torch.device
    records: dict[Layer, dict[str, Any]]
    """The part of the protocol record for each layer that it gives, in the module's order."""

    @property
    def record(self) -> dict[str, Any]:
        """Of its first layer."""
        return next(iter(self.records.values()))

    @property
    def width(self) -> int:
        """Of its first layer."""
        return self.record["width"]

    def __call__(self, images_BHWC: np.ndarray) -> np.ndarray:
        """What its first layer gives, [B, width] in float64, of uint8 RGB images [B, H, W, 3] of any size."""
        return next(iter(self.outputs(images_BHWC).values()))

    @torch.inference_mode()
    def outputs(self, images_BHWC: np.ndarray) -> dict[Layer, np.ndarray]:
        """What each of its layers gives, by one pass through the network."""
        images_BCHW = torch.tensor(images_BHWC).permute(0, 3, 1, 2).contiguous()
        passes = [self.module(chunk.to(self.device)) for chunk in images_BCHW.split(PASS_IMAGES)]
        return {
            layer: torch.cat([given[place].double().cpu() for given in passes]).numpy()
            for place, layer in enumerate(self.records)
        }


def load_extractor(
    name: str,
    input_px: int | None = None,
    device: str = "cpu",
    layers: Sequence[Layer] = ("features",),
    weights: ExtractorWeights | None = None,
) -> Extractor:
    """The extractor called `name`, with its weights, for the `layers` that it is to give.

    `input_px` is the side images are resized to inside `efficientnet_lite0` (default 224, a multiple of 32); the
    others have a size of their own. `weights` are those of `TAKES_WEIGHTS` in place of what these would fetch. One that is in use in this process is shared. Raises UsageError for an unknown name, a
    size that does not fit or a layer that it lacks, FlextokError when weights cannot be had: call this before any
    expensive work.
    """
    wanted = name, input_px, device, tuple(layers), weights
    extractor = _in_use.get(wanted)
    if extractor is None:
        extractor = _in_use[wanted] = _load(name, input_px, device, layers, weights)
    return extractor


_in_use: MutableMapping[Any, Extractor] = weakref.WeakValueDictionary()


def _load(
    name: str, input_px: int | None, device: str, layers: Sequence[Layer], weights: ExtractorWeights | None
) -> Extractor:
    import flextok.evaluate.extractors as ours  # (registers them, makes torch-fidelity importable)

    # isort: split
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as REGISTRY

    if name not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        raise UsageError(f"expected evaluation.extractor to be one of {known}, found {name!r}")
    if input_px is not None and name != "efficientnet_lite0":
        raise UsageError(
            f"evaluation.extractor_input_px is for efficientnet_lite0 only, found extractor {name!r}; leave it out"
        )
    network: Any = ours.IN_PLACE.get(name, REGISTRY[name])
    names = [_layer_of(network, name, layer) for layer in layers]
    options: dict[str, Any] = {} if input_px is None else {"input_px": input_px}
    if weights is not None:
        options["feature_extractor_weights_path"] = _checked(weights, name)
    try:
        module = network(name, names, verbose=False, **options).requires_grad_(False).eval().to(device)
    except RuntimeError as error:
        if weights is None:
            raise
        told = " ".join(str(error).split())[:200]
        raise UsageError(f"expected the weights of {name} at {weights.path}, found another network's: {told}") from None
    except (OSError, ImportError) as error:
        raise FlextokError(
            f"expected the weights of extractor {name!r}, found: {error}; fetch them on a machine with a network "
            "into torch's hub cache, give their path by evaluation.extractor_weights, or set "
            "evaluation.extractor=efficientnet_lite0"
        ) from error
    with torch.inference_mode():
        given = module(torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device))
    digest = digest_arrays({key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}, {})
    records: dict[Layer, dict[str, Any]] = {
        layer: {
            "name": name,
            "layer": layer_name,
            "width": output.shape[1],
            "weights": digest,
            "input_px": getattr(module, "input_px", getattr(module, "INPUT_IMAGE_SIZE", None)),
            "resize": getattr(module, "resize", "bilinear of TensorFlow 1"),
        }
        for layer, layer_name, output in zip(layers, names, given, strict=True)
    }
    return Extractor(name, module, torch.device(device), records)


def _checked(weights: ExtractorWeights, name: str) -> str:
    """The path of `weights`; raises UsageError where they are not there, others than named, or no tensors alone."""
    if name not in TAKES_WEIGHTS:
        raise UsageError(
            f"evaluation.extractor_weights is for {' and '.join(TAKES_WEIGHTS)} only, found extractor {name!r}; leave it out"
        )
    path = str(storage.local_path(weights.path))
    check_weights(path, weights.sha256, name, "set evaluation.extractor_weights, or fetch them again")
    try:
        torch.load(path, weights_only=True, mmap=True)  # torch-fidelity would unpickle whatever is in it
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        told = str(error).splitlines()[0]
        raise UsageError(f"expected tensors alone in the weights of {name} at {path}, found: {told}") from None
    return path


def _layer_of(network: Any, name: str, layer: Layer) -> str:
    """What an extractor calls one of its layers; raises UsageError where it lacks it."""
    features = network.get_default_feature_layer_for_metric("fid")
    classes = network.get_default_feature_layer_for_metric("isc")
    found = {"features": features}
    if classes != features:  # where torch-fidelity has no classes, it takes the features for them
        found["classes"] = classes
    if "spatial" in network.get_provided_features_list():
        found["spatial"] = "spatial"
    if layer not in found:
        raise UsageError(
            f"expected an extractor with {layer} among its layers for evaluation.set_metrics, found {name!r} with "
            f"{', '.join(found)}; set evaluation.extractor to inception-v3-compat or efficientnet_lite0"
        )
    return found[layer]
