"""The fewest tokens that would have done for an image, which only who knows all its reconstructions can say: the oracle.

It bounds every length policy from below; what is said of a policy is how far it lies from it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flextok.metrics.base import STATISTICS, ImageMetric, Quantity


class Oracle(NamedTuple):
    """Of each image, int64 [N] tokens and whether they are enough, bool [N]; where none are, the most there are."""

    tokens_N: np.ndarray
    reached_N: np.ndarray


def oracle(values_NK: np.ndarray, keeps: Sequence[int], metric: ImageMetric, threshold: float) -> Oracle:
    """The smallest of `keeps` (ascending) at which `metric` of an image, values [N, K], is at least as good as `threshold`.

    The value at fewer tokens decides even where it is worse again at more.
    """
    good_NK: np.ndarray = values_NK >= threshold if metric.better == "higher" else values_NK <= threshold
    reached_N = np.asarray(good_NK.any(axis=1))
    return Oracle(np.where(reached_N, np.array(keeps)[good_NK.argmax(axis=1)], keeps[-1]), reached_N)


def gap(tokens_N: np.ndarray, found: Oracle) -> tuple[float, float]:
    """Of a policy that gives images `tokens_N`: tokens beyond the oracle's, mean over images, those with too few as 0;
    and the share of images with fewer than the oracle's."""
    beyond_N = tokens_N - found.tokens_N
    return float(np.maximum(beyond_N, 0).mean()), float((beyond_N < 0).mean())


ORACLE = "of the measured K the smallest at which an image's metric meets the threshold, else the largest"
for _name, _definition, _unit in (
    ("oracle_tokens", f"mean over images of the oracle's length: {ORACLE}", "tokens"),
    ("oracle_reached", "share of images that meet the threshold at any measured K", "fraction"),
    (
        "oracle_complexity_correlation",
        "Spearman's, of the oracle's length and the bytes of the cropped image as PNG",
        "",
    ),
    ("policy_tokens", "mean over images of the length that the profile's policy gave them", "tokens"),
):
    STATISTICS.register(Quantity(name=_name, definition=_definition, unit=_unit, better=""))
for _policy, _what in (("fixed", "a fixed K"), ("policy", "the lengths of the profile's policy")):
    _beyond = f"tokens of {_what} beyond the oracle's, mean over images, those with too few as 0"
    _short = f"share of images to which {_what} gives fewer tokens than the oracle"
    STATISTICS.register(Quantity(f"{_policy}_over_oracle", _beyond, "tokens", "lower"))
    STATISTICS.register(Quantity(f"{_policy}_short_of_oracle", _short, "fraction", "lower"))
