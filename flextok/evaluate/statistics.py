"""Mean and covariance of features, gathered batch by batch, and the Fréchet distance between two of them.

Sums are kept in float64 and merge by addition, so that shards and workers may gather apart, in any order, with
memory that does not grow with the number of images. The distance itself is torch-fidelity's own function.
"""

from dataclasses import dataclass

import numpy as np

from flextok.runtime import torchvision_compat  # noqa: F401  (torch-fidelity imports torchvision)


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

    @property
    def small(self) -> bool:
        """Fewer vectors than twice their width: the covariance is poorly known, the distance biased upwards."""
        return self.count < 2 * self.width

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


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Fréchet distance |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of two Gaussians (Heusel et al. 2017, FID).

    Computed by torch-fidelity from our means and covariances. Rounding may give about -1e-6 for equal sets.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    pair = [{"mu": each.mean(), "sigma": each.covariance()} for each in (first, second)]
    return float(fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID])
