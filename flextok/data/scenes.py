"""The embedded corpus: small scenes, one coloured shape before a sky and a ground, drawn anew from a seed.

It needs no download, and it is made to show in minutes what an ordered tokenizer does: a first token can tell
the tones of sky and ground, but the colour, kind, place and size of the shape need more. Every scene has a class
(colour and kind of its shape) and a caption.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydantic import Field

from flextok.config import Config
from flextok.digests import digest_of

DRAWING_VERSION = 3
SUPERSAMPLING = 4
HORIZON = 0.625
PLACES = (0.3125, 0.4375, 0.5625, 0.6875)

COLOURS = {"red": (214, 40, 40), "yellow": (250, 200, 30), "green": (40, 170, 80), "blue": (50, 100, 230)}
SKIES = {"white": (242, 242, 238), "pale blue": (170, 205, 240), "night": (20, 24, 52)}
GROUNDS = {"sand": (225, 205, 160), "gray": (130, 132, 138), "moss": (92, 112, 70)}
SHAPES = ("disk", "square", "triangle", "ring")
SPLIT_STREAM = {"train": 0, "val": 1}


class ScenesConfig(Config):
    """How many scenes, how large, and the seed they are drawn from."""

    train_samples: int = Field(3072, gt=0, description="Scenes in the train split.")
    val_samples: int = Field(512, gt=0, description="Scenes in the val split, from another stream of the seed.")
    image_px: int = Field(32, ge=8, le=512, description="Side of a scene in pixels.")
    seed: int = Field(0, ge=0, description="Seed of all scenes.")

    def samples(self, split: str) -> int:
        """Number of scenes in `split` ("train" or "val")."""
        return self.train_samples if split == "train" else self.val_samples


@dataclass(frozen=True)
class SceneSample:
    """One scene: its PNG file, class index and caption."""

    png: bytes
    label: int
    text: str


def scene_classes() -> list[str]:
    """Names of the classes, in order of their index."""
    return [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def scenes_digest(config: ScenesConfig, split: str) -> str:
    """What decides the scenes of a split: a cheap stand-in for listing files."""
    return digest_of([DRAWING_VERSION, config.samples(split), config.image_px, config.seed, split])


def draw_scene(config: ScenesConfig, split: str, index: int) -> SceneSample:
    """Scene `index` of `split`; a stream of its own makes it independent of all others."""
    random = np.random.default_rng((config.seed, SPLIT_STREAM[split], index))
    colour, shape, sky, ground = (int(random.integers(len(x))) for x in (COLOURS, SHAPES, SKIES, GROUNDS))
    radius = random.uniform(0.25, 0.3125)
    x, y = random.choice(PLACES, size=2)

    points = (np.arange(config.image_px * SUPERSAMPLING) + 0.5) / (config.image_px * SUPERSAMPLING)
    across, down = points[None, :], points[:, None]
    canvas = np.where((down < HORIZON)[..., None], list(SKIES.values())[sky], list(GROUNDS.values())[ground])
    inside = _inside(SHAPES[shape], (across - x) / radius, (down - y) / radius)
    canvas = np.where(inside[..., None], list(COLOURS.values())[colour], canvas)

    file = io.BytesIO()
    Image.fromarray(_shrink(canvas)).save(file, format="PNG")
    names = list(COLOURS)[colour], SHAPES[shape], list(SKIES)[sky], list(GROUNDS)[ground]
    text = "a {} {} under a {} sky on {} ground".format(*names) + f", {_place(x, y)}"
    return SceneSample(file.getvalue(), colour * len(SHAPES) + shape, text)


def _shrink(canvas: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] from a canvas SUPERSAMPLING times as large: the mean of its points smooths every edge."""
    side = canvas.shape[0] // SUPERSAMPLING
    blocks = canvas.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def _inside(shape: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Which points belong to the shape, in units of its radius from its centre (y down)."""
    distance = np.hypot(dx, dy)
    if shape == "disk":
        return distance <= 1
    if shape == "ring":
        return (distance <= 1) & (distance >= 0.5)
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) <= 0.85
    return (dy <= 0.8) & (abs(dx) <= (dy + 1) / 1.8)


def _place(x: float, y: float) -> str:
    names = ("left", "centre", "right"), ("top", "middle", "bottom")
    return f"{names[1][min(int(y * 3), 2)]} {names[0][min(int(x * 3), 2)]}"
