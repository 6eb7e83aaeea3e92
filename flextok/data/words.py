"""The corpus of drawn words: pages of a few words in letters of one height, drawn anew from a seed, with what stands where.

It needs no download, and asks of a tokenizer what scenes do not: letters that can still be read. Each picture's metadata has
`texts`, a list of `{text, box}` (left, top, right, bottom in pixels), and `glyph_px`, the height of its capital letters.
"""

import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from flextok import glyphs
from flextok.config import Config
from flextok.digests import digest_of
from flextok.errors import UsageError

DRAWING_VERSION = 1
MOST_WORDS = 4
CAPITALIZED = 0.25
"""Share of the words that begin with a capital letter."""
LEAST_CONTRAST = 120
"""Of paper and ink, in brightness of 0 to 255."""
MARGIN_PX = 2
SPLIT_STREAM = {"train": 0, "val": 1}
LUMA = np.array([0.299, 0.587, 0.114])
WORDS = (
    "air", "apple", "arm", "ball", "bell", "bird", "boat", "bread", "bridge", "cat", "chair", "city", "cloud", "coat", "cup",
    "day", "dog", "door", "ear", "egg", "eye", "farm", "field", "fire", "fish", "flag", "forest", "fox", "garden", "glass",
    "hand", "hat", "hill", "horse", "house", "ice", "jar", "key", "king", "lake", "lamp", "leaf", "light", "map", "milk",
    "moon", "music", "night", "oil", "orange", "paper", "pen", "queen", "rain", "river", "road", "ship", "sky", "snow",
    "stone", "street", "sun", "table", "tree", "voice", "wall", "water", "window", "winter", "wood", "year", "zebra",
)  # fmt: skip


class WordsConfig(Config):
    """How many pages, how large, with how large letters, and the seed they are drawn from."""

    train_samples: int = Field(3072, gt=0, description="Pages in the train split.")
    val_samples: int = Field(512, gt=0, description="Pages in the val split, from another stream of the seed.")
    image_px: int = Field(64, ge=16, le=512, description="Side of a page in pixels.")
    glyph_px: tuple[int, ...] = Field(
        (6, 8, 10, 13, 16), min_length=1, description="Heights of capital letters in pixels, as many pages of each."
    )
    seed: int = Field(0, ge=0, description="Seed of all pages.")

    @field_validator("glyph_px")
    @classmethod
    def _heights(cls, heights: tuple[int, ...]) -> tuple[int, ...]:
        if list(heights) != sorted(set(heights)) or not set(heights) <= set(glyphs.heights()):
            known = ", ".join(map(str, glyphs.heights()))
            raise ValueError(f"expected ascending heights among {known} px, found {list(heights)}")
        return heights

    def samples(self, split: str) -> int:
        """Number of pages in `split` ("train" or "val")."""
        return self.train_samples if split == "train" else self.val_samples


@dataclass(frozen=True)
class Page:
    """One page: its PNG file, its words as a caption, and its metadata."""

    png: bytes
    text: str
    metadata: dict[str, Any]


def words_digest(config: WordsConfig, split: str) -> str:
    """What decides the pages of a split: a cheap stand-in for listing files."""
    heights = list(config.glyph_px)
    return digest_of([DRAWING_VERSION, config.samples(split), config.image_px, heights, config.seed, split])


@cache
def fitting_words(image_px: int, glyph_px: int) -> list[str]:
    """Those of WORDS that have a place on a page, with a capital letter too; raises UsageError where none has."""
    room = image_px - 2 * MARGIN_PX
    wide = [text for text in WORDS if glyphs.word(text.capitalize(), glyph_px).shape[1] <= room]
    if not wide or glyphs.line_px(glyph_px) > room:
        raise UsageError(
            f"expected words of {glyph_px} px to fit on pages of {image_px} px, found that none does; set "
            "corpus.words.glyph_px or corpus.words.image_px"
        )
    return wide


def draw_page(config: WordsConfig, split: str, index: int) -> Page:
    """Page `index` of `split`; a stream of its own makes it independent of all others."""
    random = np.random.default_rng((config.seed, SPLIT_STREAM[split], index))
    glyph_px = config.glyph_px[index % len(config.glyph_px)]
    paper, ink = _colours(random)
    lines = _lines(random, fitting_words(config.image_px, glyph_px), glyph_px, config.image_px - 2 * MARGIN_PX)
    coverage = np.zeros((config.image_px, config.image_px), np.float32)
    space, height = _space(glyph_px), glyphs.line_px(glyph_px)
    top = MARGIN_PX + int(random.integers(config.image_px - 2 * MARGIN_PX - len(lines) * height + 1))
    texts = []
    for line in lines:
        drawn = [glyphs.word(text, glyph_px) for text in line]
        width = sum(each.shape[1] for each in drawn) + space * (len(line) - 1)
        left = MARGIN_PX + int(random.integers(config.image_px - 2 * MARGIN_PX - width + 1))
        for text, each in zip(line, drawn, strict=True):
            right, bottom = left + each.shape[1], top + height
            coverage[top:bottom, left:right] = each
            texts.append({"text": text, "box": [left, top, right, bottom]})
            left = right + space
        top += height
    pixels = paper + coverage[..., None] * (ink - paper)
    file = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(file, format="PNG")
    caption = " ".join(each["text"] for each in texts)
    return Page(file.getvalue(), caption, {"texts": texts, "glyph_px": glyph_px})


def _lines(random: np.random.Generator, words: list[str], glyph_px: int, room: int) -> list[list[str]]:
    """One to MOST_WORDS words in lines as they fit."""
    lines: list[list[str]] = [[]]
    used, most_lines = 0, room // glyphs.line_px(glyph_px)
    for _ in range(int(random.integers(1, MOST_WORDS + 1))):
        text = words[int(random.integers(len(words)))]
        text = text.capitalize() if random.random() < CAPITALIZED else text
        width = glyphs.word(text, glyph_px).shape[1]
        more = width + (_space(glyph_px) if lines[-1] else 0)
        if used + more > room:
            if len(lines) == most_lines:
                break
            lines.append([])
            used, more = 0, width
        lines[-1].append(text)
        used += more
    return lines


def _space(glyph_px: int) -> int:
    return max(2, round(glyph_px / 2))


def _colours(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of paper and ink, RGB float64 in 0 to 255."""
    while True:
        paper, ink = random.uniform(0, 255, (2, 3))
        if abs((paper - ink) @ LUMA) >= LEAST_CONTRAST:
            return paper, ink
