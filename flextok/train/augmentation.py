"""Augmentation of pictures: flips and random crops, drawn from streams of each sample and visit.

A sample's visit is its place in the run (see sample_order.py): what it is changed to depends on the seed and that place,
not on the batch or on the worker that reads it.
"""

import numpy as np
import torch

from flextok.data.corpus.crops import Window
from flextok.model.rng import SampleRng
from flextok.train.config import AugmentationConfig
from flextok.train.data import CachedLatents, CorpusImages
from flextok.train.objective import Batch, Source


def augmented(source: Source, indices: np.ndarray, rng: SampleRng, config: AugmentationConfig) -> Batch:
    """The samples at `indices`, changed by the draws of `rng`: images, or their latents where these were computed before."""
    if config == AugmentationConfig():
        return source.fetch(indices)
    flips_B = rng.uniform("flip") < config.horizontal_flip
    if isinstance(source, CachedLatents):
        return source.fetch_views(indices, flips_B.numpy())
    assert isinstance(source, CorpusImages)  # what else pictures are trained on
    images = source.fetch(indices, windows(config, rng))["images"]
    return {"images": torch.where(flips_B.view(-1, 1, 1, 1), images.flip(3), images)}


def windows(config: AugmentationConfig, rng: SampleRng) -> list[Window] | None:
    """A window for each sample of `rng`; None where pictures are cropped at their centre."""
    if config.crop is None:
        return None
    low, high = config.crop
    sides_B = low + (high - low) * rng.uniform("crop side")
    draws = (sides_B, rng.uniform("crop left"), rng.uniform("crop top"))
    return [Window(*values) for values in zip(*(draw.tolist() for draw in draws), strict=True)]
