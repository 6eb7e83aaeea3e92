"""LPIPS (Zhang et al. 2018), version 0.1, with weights from a file in the layout of the `lpips` package.

pip install lpips safetensors
python -c "import lpips, safetensors.torch as s; w = lpips.LPIPS(net='alex').state_dict();
s.save_file({k: t.contiguous() for k, t in w.items() if not k.startswith('lins.')}, 'lpips_alex.safetensors')"
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from flextok import storage
from flextok.errors import UsageError
from flextok.metrics.base import IMAGE_METRICS, ImageMetric
from flextok.metrics.networks import device, of_pairs
from flextok.metrics.perceptual import stages_distance
from flextok.metrics.weights import WeightsConfig, without_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

ENDS = {"alex": (2, 5, 8, 10, 12), "vgg": (4, 9, 16, 23, 30)}
"""Where the stages of torchvision's networks end, behind the ReLU."""
# Of inputs in [-1, 1]; as ImageNet's means and deviations are of [0, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALLEST_PX = 32


class Lpips:
    """LPIPS by the network `net`, ready on its device.

    Raises UsageError where the file of `config` has another hash or is not in the layout of that network.
    """

    def __init__(self, net: str, config: WeightsConfig):
        import safetensors.torch

        config.check(config.path)
        self._ends = ENDS[net]
        self._layers = _layers(net)
        tensors = safetensors.torch.load(storage.read_bytes(config.path))
        backbone = {name.split(".", 2)[2]: tensor for name, tensor in tensors.items() if name.startswith("net.slice")}
        linear = [tensors.get(f"lin{stage}.model.1.weight") for stage in range(len(self._ends))]
        try:
            self._layers.load_state_dict(backbone)
            self._weights_C = [weight.flatten().to(device()) for weight in linear if weight is not None]
            if len(self._weights_C) != len(self._ends):
                raise RuntimeError("lacks linear layers")
        except RuntimeError as error:
            told = str(error).partition("\n")[0]
            raise UsageError(
                f"expected weights of lpips.LPIPS(net='{net}') in {config.path}, found others: {told}"
            ) from None
        self._layers.requires_grad_(False).eval().to(device())

    def __call__(self, images_BHWC: np.ndarray, originals_BHWC: np.ndarray) -> np.ndarray:
        """LPIPS of each image, float64 [B], 0 for equal images, of uint8 images at their own size."""
        return of_pairs(self._distance, images_BHWC, originals_BHWC)

    def _distance(self, pair_2CHW: "Tensor") -> float:
        shift, scale = (
            pair_2CHW.new_tensor(each, dtype=self._weights_C[0].dtype)[:, None, None] for each in (SHIFT, SCALE)
        )
        x, stages = (pair_2CHW / 127.5 - 1 - shift) / scale, []
        for index, layer in enumerate(self._layers, start=1):
            x = layer(x)
            if index in self._ends:
                stages.append(x)
        return stages_distance(stages, self._weights_C)


def _layers(net: str) -> "nn.Sequential":
    """Layers of the network up to its last stage, their weights not drawn."""
    from flextok.runtime import torchvision_compat  # noqa: F401

    # isort: split
    import torch
    import torchvision

    build: Any = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[net]
    with torch.device("meta"):
        layers = build(weights=None).features[: ENDS[net][-1]]
    for layer in layers:
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False  # what a stage gave must stay
    return layers.to_empty(device="cpu")


def _lpips(net: str, unmeasured: dict[str, Any], config: WeightsConfig) -> ImageMetric:
    record = {"network": net, "weights_sha256": config.sha256, "lpips_version": "0.1", "input": "[-1, 1], own size"}
    return ImageMetric(**{**unmeasured, "compute": Lpips(net, config), "record": lambda: record})


for _net, _network in (("alex", "AlexNet"), ("vgg", "VGG16")):
    _said: dict[str, Any] = {
        "name": f"lpips_{_net}",
        "label": f"LPIPS ({_network})",
        "definition": f"LPIPS 0.1 (Zhang et al. 2018) by {_network} with its learned weights, from a file that is given: "
        "evaluation.weights, made as flextok/metrics/lpips.py says",
        "unit": "",
        "better": "lower",
        "hint": "difference as people judged it; 0 is equal",
        "smallest_px": SMALLEST_PX,
    }
    IMAGE_METRICS.register(ImageMetric(**_said, compute=without_weights, of_weights=partial(_lpips, _net, _said)))
