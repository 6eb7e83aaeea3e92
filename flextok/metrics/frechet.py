"""The Fréchet distance of two sets of images. Called FID only where the features are those of the FID paper."""

from flextok.metrics.base import SET_METRICS, SetMetric, features_name
from flextok.metrics.statistics import FeatureStatistics, GivenStatistics

INCEPTION = "inception-v3-compat"


def frechet_distance(first: FeatureStatistics | GivenStatistics, second: FeatureStatistics | GivenStatistics) -> float:
    """Fréchet distance |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of two Gaussians (Heusel et al. 2017, FID).

    Computed by torch-fidelity from our means and covariances. Rounding may give about -1e-6 for equal sets.
    """
    from flextok.runtime import torchvision_compat  # noqa: F401  (torch-fidelity imports torchvision)

    # isort: split
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    pair = [{"mu": each.mean(), "sigma": each.covariance()} for each in (first, second)]
    return float(fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID])


def distance_name(extractor: str) -> str:
    """Name of the distance: `fid` for the Inception network of the FID paper, else `fd_<extractor>`."""
    return "fid" if extractor == INCEPTION else f"fd_{features_name(extractor)}"


SET_METRICS.register(
    SetMetric(
        name="frechet",
        definition="Fréchet distance of Gaussians fitted to features (Heusel et al. 2017), by torch-fidelity",
        unit="",
        better="lower",
        hint="distance of the set to held-out images",
        needs="statistics",
        compute=frechet_distance,
        number_name=distance_name,
        given=("mu", "sigma"),
        # Fewer leave the covariance poorly known, and the distance biased upwards.
        images_needed=lambda width: 2 * width,
        record=lambda: {"statistics": "float64 sums, sample covariance"},
    ),
)
