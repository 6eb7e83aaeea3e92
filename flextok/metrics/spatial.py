"""The Fréchet distance of spatial features, which sees where things are rather than only what there is.

Called sFID only where the features are those of ADM's evaluator (Nash et al. 2021; guided-diffusion/evaluations).
"""

from flextok.metrics.base import SET_METRICS, SetMetric, name_by_extractor
from flextok.metrics.frechet import frechet_distance, frechet_of_rows


def spatial_name(extractor: str) -> str:
    """Name of the distance: `sfid` for the Inception network, else `sfd_<extractor>`."""
    return name_by_extractor(extractor, "sfid", "sfd")


SET_METRICS.register(
    SetMetric(
        name="spatial_frechet",
        label="Spatial Fréchet distance",
        definition="Fréchet distance of Gaussians fitted to the first 7 channels of a map in the midst of the network, at all "
        "its places (Nash et al. 2021)",
        unit="",
        better="lower",
        hint="distance of the set to held-out images by what is where",
        needs="statistics",
        layer="spatial",
        compute=frechet_distance,
        of_rows=frechet_of_rows,
        number_name=spatial_name,
        given=("mu_s", "sigma_s"),
        images_needed=lambda width: 2 * width,
        record=lambda: {"statistics": "float64 sums, sample covariance"},
    ),
)
