"""The Inception Score of a set of images: how sure a classifier is of each, and how many classes there are in all.

Of pictures like ImageNet's only: what the classifier has no class for says nothing. It has no reference.
"""

from itertools import pairwise

import numpy as np
from scipy.special import rel_entr, softmax

from flextok.metrics.base import SET_METRICS, SetMetric, name_by_extractor

SPLITS, SEED = 10, 2020
"""Of torch-fidelity, so that a number made by its own command is the same."""


def inception_score(logits_NC: np.ndarray) -> float:
    """exp of the mean KL(p(class | image) || p(class)), the mean over 10 parts of the shuffled images (Salimans et al.
    2016): 1 for images of one class, C at the most. Raises ValueError for fewer images than parts.
    """
    count = len(logits_NC)
    if count < SPLITS:
        raise ValueError(f"expected at least {SPLITS} images in each set, found {count}")
    p_NC = softmax(logits_NC[np.random.RandomState(SEED).permutation(count)], axis=1)
    edges = [index * count // SPLITS for index in range(SPLITS + 1)]
    return float(np.mean([_score(p_NC[start:end]) for start, end in pairwise(edges)]))


def _score(p_NC: np.ndarray) -> float:
    divergence_N = rel_entr(p_NC, p_NC.mean(axis=0)).sum(axis=1)
    return float(np.exp(divergence_N.mean()))


def score_name(extractor: str) -> str:
    """Name of the score: `inception_score` for the Inception network, else `is_<extractor>`."""
    return name_by_extractor(extractor, "inception_score", "is")


SET_METRICS.register(
    SetMetric(
        name="inception_score",
        label="Inception Score",
        definition=f"exp of the mean KL of an image's classes from those of the set, mean of {SPLITS} parts (Salimans et al. "
        "2016); without a reference, for pictures like ImageNet's",
        unit="",
        better="higher",
        hint="how sure the classes of images are, and how many there are",
        needs="features",
        layer="classes",
        uses_reference=False,
        compute=lambda _, logits_NC: inception_score(logits_NC),
        number_name=score_name,
        images_needed=lambda width: 50_000,  # as many as published numbers have: it rises with the number
        fewest=SPLITS,
        record=lambda: {"splits": SPLITS, "seed": SEED},
    )
)
