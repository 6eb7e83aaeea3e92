"""The Fréchet distance of two sets of images. Called FID only where the features are those of the FID paper."""

import numpy as np

from flextok.metrics.base import SET_METRICS, SetMetric, name_by_extractor
from flextok.metrics.statistics import FeatureStatistics, GivenStatistics


def frechet_distance(first: FeatureStatistics | GivenStatistics, second: FeatureStatistics | GivenStatistics) -> float:
    """Fréchet distance |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of two Gaussians (Heusel et al. 2017, FID).

    Computed by torch-fidelity from our means and covariances. Rounding may give about -1e-6 for equal sets.
    """
    from flextok.runtime import torchvision_compat  # noqa: F401  (torch-fidelity imports torchvision)

    # isort: split
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    pair = [{"mu": each.mean(), "sigma": each.covariance()} for each in (first, second)]
    return float(fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID])


def frechet_of_rows(first: np.ndarray | GivenStatistics, second: np.ndarray | GivenStatistics) -> float:
    """The same from features [N, D], faster where these are fewer than they are wide, and stable.

    With covariances S = F^T F of factors F [R, D], tr (S1 S2)^1/2 is the sum of the singular values of F1 F2^T [R1, R2].
    """
    (mean_1, factor_1), (mean_2, factor_2) = _factored(first), _factored(second)
    spread = np.square(factor_1).sum() + np.square(factor_2).sum()
    common = np.linalg.svd(factor_1 @ factor_2.T, compute_uv=False).sum()
    return float(np.square(mean_1 - mean_2).sum() + spread - 2 * common)


def _factored(features: np.ndarray | GivenStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and a factor [R, D] of the covariance, with R at most D."""
    if isinstance(features, GivenStatistics):
        values, vectors = np.linalg.eigh(features.covariance())
        return features.mean(), np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    mean = features.mean(axis=0)
    factor = (features - mean) / np.sqrt(len(features) - 1)
    if len(factor) > factor.shape[1]:
        factor = np.asarray(np.linalg.qr(factor, mode="r"))
    return mean, factor


def distance_name(extractor: str) -> str:
    """Name of the distance: `fid` for the Inception network of the FID paper, else `fd_<extractor>`."""
    return name_by_extractor(extractor, "fid", "fd")


SET_METRICS.register(
    SetMetric(
        name="frechet",
        definition="Fréchet distance of Gaussians fitted to features (Heusel et al. 2017), by torch-fidelity",
        unit="",
        better="lower",
        hint="distance of the set to held-out images",
        needs="statistics",
        compute=frechet_distance,
        of_rows=frechet_of_rows,
        number_name=distance_name,
        given=("mu", "sigma"),
        # Fewer leave the covariance poorly known, and the distance biased upwards.
        images_needed=lambda width: 2 * width,
        record=lambda: {"statistics": "float64 sums, sample covariance"},
    ),
)
