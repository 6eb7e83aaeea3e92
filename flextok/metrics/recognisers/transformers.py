"""Faces by any vision network of transformers, such as one that was taught them, from a folder that is given."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from flextok.config import Operational
from flextok.metrics.base import Content
from flextok.metrics.networks import device, network_from_folder
from flextok.metrics.recognisers.base import RECOGNISERS, Recogniser, RecogniserConfig
from flextok.metrics.similarity import WEIGHTS_FILE
from flextok.weights import check_weights


@RECOGNISERS.register
class FolderFacesConfig(RecogniserConfig):
    """Faces by the network in a folder that transformers wrote: `pooler_output` of its AutoModel."""

    kind: Literal["transformers"] = "transformers"
    looks_for: ClassVar[Content] = "faces"
    name: str = Field(
        pattern="^[a-z][a-z0-9_]*$", description="Ends the names of its numbers, as in face_similarity_NAME."
    )
    path: Operational[str] = Field(description="Folder with model.safetensors and preprocessor_config.json.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of model.safetensors, as `sha256sum` gives it.")

    @property
    def called(self) -> str:
        return self.name

    def build(self) -> Recogniser:
        return FolderFaces(self)


class FolderFaces(Recogniser):
    """The pooled output of the network for each region, prepared as its `preprocessor_config.json` says."""

    def __init__(self, config: FolderFacesConfig):
        whose = f"face_similarity_{config.name}"
        check_weights(str(Path(config.path) / WEIGHTS_FILE), config.sha256, whose, "see docs/metrics.md")
        self._prepare, self._network = network_from_folder(config.path, "AutoModel", "vision network", whose)
        self.record = {
            "recogniser": config.name,
            "network": type(self._network).__name__,
            "weights_sha256": config.sha256,
            "output": "pooler_output",
            "input": "as its preprocessor_config.json says",
        }

    def __call__(self, regions: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return np.stack([self._features(region) for region in regions])

    def _features(self, region_HWC: np.ndarray) -> np.ndarray:
        pixels = self._prepare(images=[region_HWC], input_data_format="channels_last", return_tensors="pt")[
            "pixel_values"
        ]
        return self._network(pixel_values=pixels.to(device())).pooler_output.flatten().double().cpu().numpy()
