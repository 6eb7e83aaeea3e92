"""What a metric is, and the registers of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flextok.registry import Register


@dataclass(frozen=True)
class ImageMetric:
    """A number for each image against its reference."""

    name: str
    definition: str
    """In a line, as it stands in protocols, report and documents."""
    unit: str
    """"" for a plain number."""
    better: Literal["lower", "higher"]
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(images, references), both uint8 [B, H, W, C] of one shape -> float64 [B]."""

    def __call__(self, images_BHWC: np.ndarray, references_BHWC: np.ndarray) -> np.ndarray:
        """float64 [B]; raises ValueError unless both are uint8 [B, H, W, C] of one shape."""
        for name, array in (("images", images_BHWC), ("references", references_BHWC)):
            if array.dtype != np.uint8 or array.ndim != 4:
                raise ValueError(f"expected {name} as uint8 [B, H, W, C], found {array.dtype} {array.shape}")
        if images_BHWC.shape != references_BHWC.shape:
            raise ValueError(f"expected two equal shapes, found {images_BHWC.shape} and {references_BHWC.shape}")
        return self.compute(images_BHWC, references_BHWC)


IMAGE_METRICS: Register[ImageMetric] = Register("image metric", home="flextok.metrics")
