"""A reader of drawn words that needs no download: letters of the font that they are drawn with, laid over the picture.

It knows that one font, in one line of letters and digits, and reads it best at the size that it was drawn at: pictures that a
crop has made larger or smaller it reads worse. What it says of other texts is nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from operator import itemgetter
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from flextok import glyphs
from flextok.metrics.base import Content
from flextok.metrics.recognisers.base import RECOGNISERS, Recogniser, RecogniserConfig

LUMA = np.array([0.299, 0.587, 0.114])
FAINTEST = 4.0
"""Difference of ink and paper, in brightness of 0 to 255, below which there is nothing to read."""
METHOD = (
    "brightness from paper (median) to ink (farthest from it); letters and empty columns from left to right with the least "
    "squared difference from the picture"
)


class TemplateReader(Recogniser):
    """Reads a word letter by letter, all of them together such that they differ least from the picture."""

    def __init__(self):
        import PIL

        family, style = glyphs.font(glyphs.heights()[0]).getname()
        self.record: dict[str, Any] = {
            "recogniser": "template",
            "font": f"{family} {style}, Pillow {PIL.__version__}",
            "alphabet": glyphs.ALPHABET,
            "method": METHOD,
        }

    def __call__(self, regions: Sequence[np.ndarray]) -> list[str]:
        return [_read(region) for region in regions]


def _read(region_HWC: np.ndarray) -> str:
    ink_HW, capital_px = _ink(region_HWC)
    return "" if ink_HW is None else _best(ink_HW, capital_px)


def _ink(region_HWC: np.ndarray) -> tuple[np.ndarray | None, int]:
    """How much ink is at each pixel, about 0 to 1, at the nearest height of a line of letters, and the height of its capitals."""
    height, width = region_HWC.shape[:2]
    capital_px = min(glyphs.heights(), key=lambda each: abs(glyphs.line_px(each) - height))
    line_px = glyphs.line_px(capital_px)
    if line_px != height:
        size = max(1, round(width * line_px / height)), line_px
        region_HWC = np.asarray(Image.fromarray(region_HWC).resize(size, Image.Resampling.BICUBIC))
    bright_HW = region_HWC @ LUMA
    paper = np.median(bright_HW)
    low, high = np.percentile(bright_HW, (1, 99))
    ink = low if paper - low > high - paper else high
    return (None if abs(ink - paper) < FAINTEST else (bright_HW - paper) / (ink - paper)), capital_px


@cache
def _templates(capital_px: int) -> dict[int, tuple[str, np.ndarray]]:
    """By their width in pixels the letters, and their cells [G, H * W]."""
    by_width: dict[int, str] = defaultdict(str)
    for letter in glyphs.ALPHABET:
        by_width[glyphs.cell(letter, capital_px).shape[1]] += letter
    return {
        width: (letters, np.stack([glyphs.cell(letter, capital_px).ravel() for letter in letters]))
        for width, letters in by_width.items()
    }


def _best(ink_HW: np.ndarray, capital_px: int) -> str:
    """The word whose letters, with empty columns where there is none, have the least squared difference from `ink_HW`."""
    columns = ink_HW.shape[1]
    fits: dict[
        int, tuple[np.ndarray, list[str]]
    ] = {}  # by width, at each place: the best letter's cost, and the letter
    for width, (letters, cells_GN) in _templates(capital_px).items():
        if width <= columns:
            windows = np.lib.stride_tricks.sliding_window_view(ink_HW, width, axis=1)  # [H, P, W]
            windows_PN = windows.transpose(1, 0, 2).reshape(windows.shape[1], -1)
            cost_PG = (windows_PN**2).sum(axis=1)[:, None] + (cells_GN**2).sum(axis=1) - 2 * windows_PN @ cells_GN.T
            best_P = cost_PG.argmin(axis=1)
            fits[width] = cost_PG[np.arange(len(best_P)), best_P], [letters[index] for index in best_P]
    empty = (ink_HW**2).sum(axis=0)
    best: list[tuple[float, int, str]] = [
        (0.0, 0, "")
    ]  # at each column: cost so far, where its last part begins, its letter
    for end in range(1, columns + 1):
        choices = [(best[end - 1][0] + empty[end - 1], end - 1, "")]
        for width, (cost_P, letters) in fits.items():
            if (start := end - width) >= 0:
                choices.append((best[start][0] + cost_P[start], start, letters[start]))
        best.append(min(choices, key=itemgetter(0)))
    word, end = "", columns
    while end > 0:
        _, end, letter = best[end]
        word = letter + word
    return word


@RECOGNISERS.register
class TemplateReaderConfig(RecogniserConfig):
    """The reader of drawn words."""

    kind: Literal["template"] = "template"
    looks_for: ClassVar[Content] = "text"

    def build(self) -> Recogniser:
        return TemplateReader()
