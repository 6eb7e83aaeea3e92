"""The one door from stored pictures to crops: for training, tokenization, evaluation and verification alike.

Light to import: decoding processes start fast.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from flextok.data import images
from flextok.data.config import ImageLimits
from flextok.data.sources.files import read_range
from flextok.errors import IntegrityError

View = Literal["center", "center_flip", "start", "start_flip", "end", "end_flip"]
CENTER: tuple[View, ...] = ("center",)
FLIP = "_flip"

STORED_LIMITS = ImageLimits(min_side=1, max_aspect=1e9, max_pixels=170_000_000, max_bytes=2**30)
"""No narrower than any corpus' own limits: those were judged when it was sharded."""


class Window(NamedTuple):
    """A square of a picture: its side as a part of the picture's short side, and its place on the way from left and top, 0 to 1."""

    side: float
    left: float
    top: float


class ByteRange(NamedTuple):
    """Where a picture's bytes lie in its file, and their hash as the corpus recorded it (hex; None where it did not)."""

    offset: int
    size: int
    sha256: str | None


class Crops(NamedTuple):
    """What became of a picture: `pixels` uint8 [V, S, S, 3], one for each view; its size as displayed; its hash."""

    pixels: np.ndarray
    width: int
    height: int
    sha256: bytes


class Undecodable(NamedTuple):
    """Why there are no crops of a picture."""

    reason: str
    detail: str
    damaged: bool
    """Its bytes are not those of which the hash was recorded."""


def check_hash(content: bytes, recorded: str | None) -> bytes | Undecodable:
    """The sha256 of a picture's bytes, or that it is not the one `recorded` at sharding (hex)."""
    sha256 = hashlib.sha256(content).digest()
    if recorded is not None and recorded != sha256.hex():
        return Undecodable("broken_image", "its bytes differ from the hash recorded in the corpus", damaged=True)
    return sha256


def crop_stored(
    content: bytes, recorded: str | None, size_px: int, views: Sequence[View | Window] = CENTER
) -> Crops | Undecodable:
    """The crops of a picture, or why there are none.

    Bytes that differ from the hash `recorded` at sharding (hex) are refused even when they decode: their pixels are not
    the corpus' pixels.
    """
    sha256 = check_hash(content, recorded)
    if isinstance(sha256, Undecodable):
        return sha256
    try:
        decoded = images.decode(content, STORED_LIMITS)
    except images.ImageError as error:
        return Undecodable(error.reason, error.detail, damaged=False)
    pixels = np.stack([crop_view(decoded.image, size_px, view) for view in views])
    return Crops(pixels, decoded.width, decoded.height, sha256)


def read_at(url: str, offset: int, size: int) -> bytes:
    """`size` bytes of the file `url` from `offset`, say of a picture in `Corpus.index`; raises IntegrityError where it ends before."""
    content = read_range(url, offset, offset + size)
    if len(content) != size:
        raise IntegrityError(f"expected {size} bytes at {offset} of {url}, found {len(content)}; run `flextok verify`")
    return content


def read_span(url: str, ranges: Sequence[ByteRange]) -> bytes:
    """What the file `url` holds from the first of `ranges` to the end of the last, which follow each other.

    Raises OSError when it cannot be read, IntegrityError when it ends before.
    """
    start, end = ranges[0].offset, ranges[-1].offset + ranges[-1].size
    return read_at(url, start, end - start)


def crop_span(
    content: bytes, ranges: Sequence[ByteRange], size_px: int, views: Sequence[View | Window] = CENTER
) -> list[Crops | Undecodable]:
    """`crop_stored` of all `ranges`, of which `read_span` gave the `content`."""
    whole, found = memoryview(content), []
    for offset, size, recorded in ranges:
        start = offset - ranges[0].offset
        found.append(crop_stored(bytes(whole[start : start + size]), recorded, size_px, views))
    return found


def read_crops(
    url: str, ranges: Sequence[ByteRange], size_px: int, views: Sequence[View | Window] = CENTER
) -> list[Crops | Undecodable]:
    """`read_span`, then `crop_span`."""
    return crop_span(read_span(url, ranges), ranges, size_px, views)


def crop_view(picture: Image.Image, size_px: int, view: View | Window) -> np.ndarray:
    """uint8 [size_px, size_px, 3] of `picture` (RGB): the centre, start (left or top) or end, flipped or not; or a window."""
    if isinstance(view, Window):
        return _crop_window(picture, size_px, view)
    place = view.removesuffix(FLIP)
    if place == "center":
        crop = images.center_crop(picture, size_px)
    else:
        image = images.resize_short_side(picture, size_px)
        left, top = (0, 0) if place == "start" else (image.width - size_px, image.height - size_px)
        crop = np.asarray(image.crop((left, top, left + size_px, top + size_px)))
    return crop[:, ::-1] if view.endswith(FLIP) else crop


def _crop_window(picture: Image.Image, size_px: int, window: Window) -> np.ndarray:
    """As ADM's random crop (guided-diffusion, `random_crop_arr`): the picture is resized first, then cut."""
    image = images.resize_short_side(picture, round(size_px / window.side))
    left = int(window.left * (image.width - size_px + 1))
    top = int(window.top * (image.height - size_px + 1))
    return np.asarray(image.crop((left, top, left + size_px, top + size_px)))


def preprocess_record(size_px: int, views: tuple[View, ...]) -> dict[str, Any]:
    """What the metadata of token shards says about the way from bytes to the model's input."""
    record = images.preprocess(size_px)
    return record if views == CENTER else {**record, "views": list(views)}
