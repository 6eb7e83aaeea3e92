"""How well the words of an image can still be read: what a recogniser reads beside what stands there, with case (TokBench)."""

from collections.abc import Sequence

import numpy as np

from flextok.metrics.base import CONTENT_METRICS, ContentMetric


def edit_distance(a: str, b: str) -> int:
    """The fewest letters to insert, remove or exchange that make `b` of `a` (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, mine in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, theirs in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (mine != theirs))
    return row[-1]


def text_accuracy(read: Sequence[str], true: Sequence[str]) -> np.ndarray:
    """1.0 for each word that is read as it is, else 0.0."""
    return np.array([float(mine == theirs) for mine, theirs in zip(read, true, strict=True)])


def text_similarity(read: Sequence[str], true: Sequence[str]) -> np.ndarray:
    """1 - edit distance / the longer of the two, for each word: 1 for equal ones, 0 where no letter is in its place."""
    lengths = [max(len(mine), len(theirs), 1) for mine, theirs in zip(read, true, strict=True)]
    distances = [edit_distance(mine, theirs) for mine, theirs in zip(read, true, strict=True)]
    return 1 - np.array(distances) / np.array(lengths)


CONTENT_METRICS.register(
    ContentMetric(
        name="text_accuracy",
        label="Words read right",
        definition="share of an image's words that are read as they are, with case, each from its box, then averaged over "
        "images",
        unit="fraction",
        better="higher",
        hint="whether words can still be read",
        compute=text_accuracy,
        content="text",
    )
)
CONTENT_METRICS.register(
    ContentMetric(
        name="text_similarity",
        label="Likeness of words read",
        definition="1 - edit distance / length of the longer, of what is read of a word from its box and the word, mean over an "
        "image's words, then over images",
        unit="",
        better="higher",
        hint="1 where all letters are read right",
        compute=text_similarity,
        content="text",
    )
)
