"""Letters of the font that Pillow has built in (Aileron), each in a cell of its own: what drawn texts are made of, and what a
reader by templates looks for."""

import string
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flextok.errors import UsageError

ALPHABET = string.ascii_lowercase + string.ascii_uppercase + string.digits
SIZES = [half / 2 for half in range(12, 121)]
"""Of the font, as Pillow counts: the letters of 6 are 4 px high, those of 60 are 42."""


@cache
def _sizes() -> dict[int, float]:
    """The largest of SIZES at which an H has a height in pixels; letters are fitted to pixels, and some heights passed over."""
    return {-int(ImageFont.load_default(size).getbbox("H", anchor="ls")[1]): size for size in SIZES}


def heights() -> list[int]:
    """The heights in pixels, ascending, that capital letters can have."""
    return sorted(_sizes())


@cache
def font(capital_px: int) -> ImageFont.FreeTypeFont:
    """The font with capital letters so many pixels high; raises UsageError for a height that they cannot have."""
    if capital_px not in _sizes():
        raise UsageError(f"expected a height of letters among {', '.join(map(str, heights()))} px, found {capital_px}")
    found = ImageFont.load_default(_sizes()[capital_px])
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


@cache
def rows(capital_px: int) -> tuple[int, int]:
    """Pixels of a line above and below its baseline: what any letter of ALPHABET takes."""
    boxes = [font(capital_px).getbbox(letter, anchor="ls") for letter in ALPHABET]
    return -int(min(box[1] for box in boxes)), int(max(box[3] for box in boxes))


def line_px(capital_px: int) -> int:
    """Height of a line of such letters."""
    return sum(rows(capital_px))


@cache
def cell(letter: str, capital_px: int) -> np.ndarray:
    """How much ink is at each pixel, float32 [line_px, width] in [0, 1]; cells stand side by side and do not overlap."""
    drawn, above = font(capital_px), rows(capital_px)[0]
    left, _, right, _ = drawn.getbbox(letter, anchor="ls")
    before = max(0, -int(left))
    width = before + max(int(right), round(drawn.getlength(letter)))
    image = Image.new("L", (width, line_px(capital_px)))
    ImageDraw.Draw(image).text((before, above), letter, fill=255, font=drawn, anchor="ls")
    return np.asarray(image, np.float32) / 255


def word(text: str, capital_px: int) -> np.ndarray:
    """`text` of ALPHABET as its cells side by side, float32 [line_px, width]."""
    return np.concatenate([cell(letter, capital_px) for letter in text], axis=1)
