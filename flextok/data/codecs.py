"""What the codecs of pictures make of one in no more than a number of bytes, headers included."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

from flextok.errors import UsageError
from flextok.registry import Register

QUALITIES = range(1, 96)
"""Above 95 a JPEG only grows."""
SMALLEST_PX = 8
"""Side below which a picture is not halved any more."""


@dataclass(frozen=True)
class Codec:
    """A lossy format that Pillow writes."""

    name: str
    format: str
    library: str
    """What `PIL.features` calls it."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def require(self) -> None:
        """Raises UsageError where this Pillow does not write it."""
        if not features.check(self.library):
            raise UsageError(f"expected a Pillow that writes {self.name}, found {PIL.__version__} without it")

    def record(self) -> dict[str, Any]:
        """What decides its files, for the protocol."""
        library = f"{self.library} {features.version(self.library)}, Pillow {PIL.__version__}"
        return {"name": self.name, "library": library, **self.options}

    def encode(self, image: Image.Image, quality: int) -> bytes:
        """The file of an RGB picture."""
        file = io.BytesIO()
        image.save(file, format=self.format, quality=quality, **self.options)
        return file.getvalue()


CODECS: Register[Codec] = Register("codec")
for _codec in (
    Codec("jpeg", "JPEG", "jpg", {"optimize": True}),
    Codec("webp", "WEBP", "webp", {"method": 4}),
    Codec("avif", "AVIF", "avif", {"speed": 6, "max_threads": 1}),
):
    CODECS.add(_codec.name, _codec)


class Compressed:
    """A picture, uint8 [H, W, 3], in a codec. Files are made once, however many sizes are asked for."""

    def __init__(self, codec: Codec, image_HWC: np.ndarray):
        self._codec, self._original = codec, image_HWC
        self._sizes = [Image.fromarray(image_HWC)]
        while min(self._sizes[-1].size) >= 2 * SMALLEST_PX:
            width, height = self._sizes[-1].size
            self._sizes.append(self._sizes[-1].resize((width // 2, height // 2), Image.Resampling.BOX))
        self._file = cache(self._make_file)
        self._decoded = cache(self._decode)

    def at_most(self, bytes: int) -> np.ndarray | None:
        """What comes back from a file of at most so many bytes, uint8 [H, W, 3]; None where there is no such file.

        The picture and its halvings, each at the best quality that fits by bisection; of these the one that comes back, by
        BICUBIC where it was halved, with the least squared error.
        """
        found = [
            self._decoded(halvings, quality)
            for halvings in range(len(self._sizes))
            if (quality := self._quality(halvings, bytes)) is not None
        ]
        return min(found, key=self._error, default=None)

    def _quality(self, halvings: int, bytes: int) -> int | None:
        low, high = QUALITIES[0], QUALITIES[-1]
        if len(self._file(halvings, low)) > bytes:
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._file(halvings, middle)) <= bytes:
                low = middle
            else:
                high = middle - 1
        return low

    def _make_file(self, halvings: int, quality: int) -> bytes:
        return self._codec.encode(self._sizes[halvings], quality)

    def _decode(self, halvings: int, quality: int) -> np.ndarray:
        with Image.open(io.BytesIO(self._file(halvings, quality)), formats=[self._codec.format]) as image:
            back = image.convert("RGB")
        return np.asarray(back if halvings == 0 else back.resize(self._sizes[0].size, Image.Resampling.BICUBIC))

    def _error(self, image_HWC: np.ndarray) -> float:
        return float(np.square(image_HWC.astype(np.float64) - self._original).sum())
