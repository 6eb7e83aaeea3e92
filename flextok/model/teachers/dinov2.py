"""DINOv2 as a teacher, through transformers."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flextok.errors import UsageError
from flextok.model.teachers.base import Teacher
from flextok.model.teachers.config import DinoV2Config
from flextok.model.transformers_package import import_transformers
from flextok.weights import check_weights, from_hub

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MODEL_TYPES = ("dinov2", "dinov2_with_registers")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoV2(Teacher):
    """Its last hidden states at the patches, without class and register tokens, as REPA takes them (arXiv 2410.06940)."""

    def __init__(self, config: DinoV2Config, device: torch.device):
        remedy = "run `pip install transformers`, or take the teacher efficientnet_lite0"
        transformers = import_transformers("the teacher dinov2", remedy)
        hub = (str(config.hub_id), (CONFIG, WEIGHTS), "the teacher", "or set teacher.folder")
        folder = Path(config.folder) if config.folder is not None else from_hub(*hub)
        remedy = "set teacher.folder and teacher.sha256 to the same weights"
        check_weights(str(folder / WEIGHTS), config.sha256, "the teacher dinov2", remedy)
        try:
            model: Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise UsageError(f"expected a DINOv2 model in {folder}, found: {first_line}") from None
        if model.config.model_type not in MODEL_TYPES:
            raise UsageError(f"expected a DINOv2 model in {folder}, found a {model.config.model_type}")
        patch_px = model.config.patch_size
        if config.input_px % patch_px:
            raise UsageError(f"expected teacher.input_px in multiples of {patch_px}, found {config.input_px}")
        self.width, self._input_px = int(model.config.hidden_size), config.input_px
        self._model = model.eval().requires_grad_(False).float().to(device)
        self._patches = (config.input_px // patch_px) ** 2
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=device).view(3, 1, 1)

    def maps(self, images_B3HW: Tensor) -> Tensor:
        """See `Teacher.maps`."""
        side = (self._input_px, self._input_px)
        resized = F.interpolate(images_B3HW.float() / 255, size=side, mode="bicubic", antialias=True).clamp(0, 1)
        hidden_BND = self._model(pixel_values=(resized - self._mean) / self._std).last_hidden_state
        patches_BPD = hidden_BND[:, -self._patches :]  # class and register tokens stand before them
        return patches_BPD.transpose(1, 2).unflatten(2, (math.isqrt(self._patches), -1))
