"""Crops and flips of an image as rows of their own."""

from typing import Any

import numpy as np
from PIL import Image

from flextok.data import images
from flextok.tokenize.config import View

FLIP = "_flip"


def crop_view(picture: Image.Image, size_px: int, view: View) -> np.ndarray:
    """uint8 [size_px, size_px, 3] of `picture` (RGB): the centre, start (left or top) or end, flipped or not."""
    place = view.removesuffix(FLIP)
    if place == "center":
        crop = images.center_crop(picture, size_px)
    else:
        image = images.resize_short_side(picture, size_px)
        left, top = (0, 0) if place == "start" else (image.width - size_px, image.height - size_px)
        crop = np.asarray(image.crop((left, top, left + size_px, top + size_px)))
    return crop[:, ::-1] if view.endswith(FLIP) else crop


def preprocess_record(size_px: int, views: tuple[View, ...]) -> dict[str, Any]:
    """What the metadata of token shards says about the way from bytes to the model's input."""
    record = images.preprocess(size_px)
    return record if views == ("center",) else {**record, "views": list(views)}
