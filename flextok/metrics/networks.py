"""Networks that metrics of images look through: where they run, and the one that all metrics share."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from flextok.errors import UsageError

if TYPE_CHECKING:
    from efficientnet_lite_pytorch import EfficientNet
    from torch import Tensor


def device() -> str:
    """The first GPU where this process has one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def of_pairs(distance: Callable[["Tensor"], float], images_BHWC: np.ndarray, originals_BHWC: np.ndarray) -> np.ndarray:
    """`distance` of each image and its original, uint8 [2, 3, H, W] on the device: float64 [B].

    Pair by pair, as sums of float32 depend on the size of a batch and an image's number must not.
    """
    import torch

    pairs = (np.stack(pair).transpose(0, 3, 1, 2) for pair in zip(images_BHWC, originals_BHWC, strict=True))
    with torch.inference_mode():
        return np.array([distance(torch.tensor(pair, device=device())) for pair in pairs])


@cache
def shared_efficientnet() -> "EfficientNet":
    """One for all metrics of this process, ready on its device."""
    from flextok.model.efficientnet_lite0 import efficientnet_lite0

    return efficientnet_lite0().requires_grad_(False).eval().to(device())


@cache
def efficientnet_record() -> dict[str, Any]:
    """What is said of it in protocols."""
    from flextok.digests import digest_arrays
    from flextok.model.efficientnet_lite0 import FULL_INPUT_PX, RESIZE

    state = shared_efficientnet().state_dict()
    weights = digest_arrays({f"network.{key}": tensor.cpu().numpy() for key, tensor in state.items()}, {})
    return {"network": "efficientnet_lite0", "weights": weights, "input_px": FULL_INPUT_PX, "resize": RESIZE}


def network_from_folder(path: str, model: str, kind: str, whose: str) -> tuple[Any, Any]:
    """The preparation of pictures and the vision network that transformers reads from a local folder, as its class `model`.

    Nothing is downloaded. Raises UsageError where transformers is not installed, or the folder holds no such `kind`; the
    network is for `whose` numbers.
    """
    from flextok.model.transformers_package import import_transformers

    transformers = import_transformers(whose)
    from_folder = {"local_files_only": True, "trust_remote_code": False}
    try:
        prepare = transformers.AutoImageProcessor.from_pretrained(path, **from_folder)
        network = getattr(transformers, model).from_pretrained(path, use_safetensors=True, **from_folder)
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())
        raise UsageError(f"expected a {kind} of transformers in {path}, found: {told}") from None
    return prepare, network.float().requires_grad_(False).eval().to(device())
