"""Feature extractors of the distribution distances, found by name in torch-fidelity's registry.

Ours (`flextok.evaluate.extractors`) are there beside its own. torch-fidelity's `inception-v3-compat` (the only
one whose distance is called FID), `dinov2-*`, `clip-*` and `vgg16` fetch their weights on first use into torch's
hub cache; on a closed machine put the files there beforehand.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from flextok.digests import digest_arrays
from flextok.errors import FlextokError, UsageError

# Images of one pass: bounds memory at 224 px to some hundred MB, whatever the batch of the caller.
PASS_IMAGES = 64


@dataclass(frozen=True)
class Extractor:
    """A feature extractor ready to use, and its part of the protocol record."""

    name: str
    module: nn.Module
    device: torch.device
    width: int
    record: dict[str, Any]

    @torch.inference_mode()
    def __call__(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Features [B, width] in float64 of uint8 RGB images [B, H, W, 3] of any size."""
        images_BCHW = torch.tensor(images_BHWC).permute(0, 3, 1, 2).contiguous()
        passes = [self.module(chunk.to(self.device))[0].double().cpu() for chunk in images_BCHW.split(PASS_IMAGES)]
        return torch.cat(passes).numpy()


def load_extractor(name: str, input_px: int | None = None, device: str = "cpu") -> Extractor:
    """The extractor called `name`, with its weights.

    `input_px` is the side images are resized to inside `efficientnet_lite0` (default 224, a multiple of 32); the
    others have a size of their own. Raises UsageError for an unknown name or a size that does not fit, FlextokError
    when weights cannot be had: call this before any expensive work.
    """
    import flextok.evaluate.extractors  # noqa: F401  (registers ours, makes torch-fidelity importable)

    # isort: split
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as REGISTRY
    from torch_fidelity.utils import create_feature_extractor

    if name not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        raise UsageError(f"expected evaluation.extractor to be one of {known}, found {name!r}")
    if input_px is not None and name != "efficientnet_lite0":
        raise UsageError(
            f"evaluation.extractor_input_px is for efficientnet_lite0 only, found extractor {name!r}; leave it out"
        )
    layer = REGISTRY[name].get_default_feature_layer_for_metric("fid")
    options = {} if input_px is None else {"input_px": input_px}
    try:
        module = create_feature_extractor(name, [layer], cuda=False, verbose=False, **options).to(device)
    except (OSError, ImportError) as error:
        raise FlextokError(
            f"expected the weights of extractor {name!r}, found: {error}; fetch them on a machine with a network "
            "into torch's hub cache, or set evaluation.extractor=efficientnet_lite0"
        ) from error
    with torch.inference_mode():
        width = module(torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device))[0].shape[1]
    record = {
        "name": name,
        "layer": layer,
        "width": width,
        "weights": digest_arrays({key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}, {}),
        "input_px": getattr(module, "input_px", getattr(module, "INPUT_IMAGE_SIZE", None)),
        "resize": getattr(module, "resize", "bilinear of TensorFlow 1"),
    }
    return Extractor(name, module, torch.device(device), width, record)
