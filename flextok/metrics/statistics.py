"""Mean and covariance of features, gathered batch by batch.

Sums are kept in float64 and merge by addition, so that shards and workers may gather apart, in any order, with
memory that does not grow with the number of images.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class FeatureStatistics:
    """Number, sum and sum of outer products of feature vectors; `width` is their length D."""

    count: int
    total_D: np.ndarray
    outer_DD: np.ndarray

    @classmethod
    def empty(cls, width: int) -> "FeatureStatistics":
        """Statistics of no vectors at all."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @property
    def width(self) -> int:
        """Length of a feature vector."""
        return len(self.total_D)

    def add(self, features_ND: np.ndarray) -> None:
        """Take in N more vectors; raises ValueError when they are not [N, D] or not finite."""
        if features_ND.ndim != 2 or features_ND.shape[1] != self.width:
            raise ValueError(f"expected features [N, {self.width}], found {features_ND.shape}")
        if not np.isfinite(features_ND).all():
            raise ValueError("expected finite features, found NaN or infinity")
        features = features_ND.astype(np.float64)
        self.count += len(features)
        self.total_D += features.sum(axis=0)
        self.outer_DD += features.T @ features

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Statistics of both sets of vectors together."""
        if other.width != self.width:
            raise ValueError(f"expected statistics of width {self.width}, found {other.width}")
        return FeatureStatistics(self.count + other.count, self.total_D + other.total_D, self.outer_DD + other.outer_DD)

    def mean(self) -> np.ndarray:
        """Mean feature vector [D]."""
        return self.total_D / self.count

    def covariance(self) -> np.ndarray:
        """Sample covariance [D, D], divided by N - 1 as numpy.cov does; raises ValueError for fewer than 2 vectors."""
        if self.count < 2:
            raise ValueError(f"expected at least 2 feature vectors, found {self.count}")
        return (self.outer_DD - np.outer(self.total_D, self.mean())) / (self.count - 1)


@dataclass(frozen=True)
class GivenStatistics:
    """Mean [D] and covariance [D, D] as somebody else computed them, of a number of vectors that is not known."""

    mean_D: np.ndarray
    covariance_DD: np.ndarray

    @property
    def width(self) -> int:
        """Length of a feature vector."""
        return len(self.mean_D)

    def mean(self) -> np.ndarray:
        """Mean feature vector [D]."""
        return self.mean_D

    def covariance(self) -> np.ndarray:
        """Sample covariance [D, D]."""
        return self.covariance_DD


class FeatureRows:
    """All feature vectors, for metrics that compare them one by one; memory grows with the set."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, features_ND: np.ndarray) -> None:
        """Take in N more vectors."""
        self._parts.append(features_ND.astype(np.float64, copy=False))

    def stack(self) -> np.ndarray:
        """All of them, float64 [N, D], in the order they came: one array, as long as no more are added."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        return self._parts[0]
