"""Small pictures in small files, for the pages of stages."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

THUMBNAIL_PX = 64
MAX_PICTURE_BYTES = 72_000
"""In base64, as a page holds them, less than 100 kB."""
JPEG_QUALITIES = (90, 75, 50)


def thumbnail(png: bytes) -> "np.ndarray":
    """A PNG of ours as uint8 [THUMBNAIL_PX, THUMBNAIL_PX, 3]."""
    from flextok.data.images import center_crop, read_png

    return center_crop(read_png(png), THUMBNAIL_PX)


def small_file(png: bytes) -> bytes:
    """A PNG of ours as it is where it is small enough; else as a JPEG, and at last as one with fewer pixels."""
    from PIL import Image

    from flextok.data.images import read_png

    if len(png) <= MAX_PICTURE_BYTES:
        return png
    image = Image.fromarray(read_png(png))
    while True:
        for quality in JPEG_QUALITIES:
            file = io.BytesIO()
            image.save(file, format="JPEG", quality=quality)
            if len(file.getvalue()) <= MAX_PICTURE_BYTES:
                return file.getvalue()
        image = image.reduce(2)
