"""Where the images of a corpus have words or faces, as the metadata of its samples says, in their crops' pixels."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flextok.errors import UsageError
from flextok.metrics.base import Content

TEXTS, FACES = "texts", "faces"
"""Fields of a sample's metadata: a list of `{text, box}`, and a list of boxes; a box is left, top, right and bottom in pixels
of the picture as it is displayed."""
FIELDS: dict[Content, str] = {"text": TEXTS, "faces": FACES}
RULE = "boxes of the samples' metadata, scaled and cut as the picture; those that the crop cuts are left out"

Box = tuple[int, int, int, int]


class Regions(NamedTuple):
    """Of one image after the crop."""

    words: list[tuple[str, Box]]
    faces: list[Box]


def regions_of(documents: Mapping[str, Mapping[str, Any]], size_px: int) -> dict[str, Regions]:
    """By key what the samples' JSON says, in crops of `size_px`; raises UsageError where it cannot be understood."""
    return {key: _regions(key, document, size_px) for key, document in documents.items()}


def cut(image_HWC: np.ndarray, box: Box) -> np.ndarray:
    """The pixels of a box."""
    left, top, right, bottom = box
    return image_HWC[top:bottom, left:right]


def _regions(key: str, document: Mapping[str, Any], size_px: int) -> Regions:
    metadata = document.get("metadata", {})
    try:
        texts = [(str(each["text"]), _numbers(each["box"])) for each in metadata.get(TEXTS, ())]
        faces = [_numbers(box) for box in metadata.get(FACES, ())]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"expected {TEXTS} as [{{text, box: [left, top, right, bottom]}}, ...] and {FACES} as [box, ...] in the metadata of "
            f"sample {key}, found others ({error!r}); correct the source and shard it again"
        ) from None
    if (texts or faces) and "source_sha256" in document:
        raise UsageError(
            f"expected sample {key} as its source has it, which its boxes are of, found that it was made smaller; shard it "
            "without corpus.resize_short_side"
        )
    size = document["width"], document["height"]
    words = [(text, box) for text, whole in texts for box in _in_crop(whole, size, size_px)]
    return Regions(words, [box for whole in faces for box in _in_crop(whole, size, size_px)])


def _numbers(box: Sequence[Any]) -> list[float]:
    left, top, right, bottom = map(float, box)
    if not left < right or not top < bottom:
        raise ValueError(f"box {list(box)}")
    return [left, top, right, bottom]


def _in_crop(box: Sequence[float], size: tuple[int, int], size_px: int) -> Iterator[Box]:
    """The box in the centre crop, as `images.center_crop` makes it; nothing where the crop cuts it or it has no pixel."""
    scale = size_px / min(size)
    resized = [max(size_px, round(side * scale)) for side in size]
    places = []
    for index, place in enumerate(box):
        axis = index % 2
        places.append(round(place * resized[axis] / size[axis]) - (resized[axis] - size_px) // 2)
    left, top, right, bottom = places
    if 0 <= left < right <= size_px and 0 <= top < bottom <= size_px:
        yield left, top, right, bottom
