"""How much of one set lies where the other is, by balls around each feature that reach to its k-th neighbour.

Precision and recall of Kynkäänniemi et al. 2019, density and coverage of Naeem et al. 2020.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from flextok.metrics.base import SET_METRICS, SetMetric, features_name

PRECISION_K = 3
DENSITY_K = 5
"""As their authors recommend: for precision and recall, for density and coverage."""
BLOCK = 4096
"""Features whose distances to a whole set are in memory at once."""


def precision(reference_ND: np.ndarray, images_MD: np.ndarray) -> float:
    """Share of the images that lie in the ball of any reference image, in [0, 1]."""
    return _share_in_any_ball(images_MD, reference_ND)


def recall(reference_ND: np.ndarray, images_MD: np.ndarray) -> float:
    """Share of the reference images that lie in the ball of any image, in [0, 1]."""
    return _share_in_any_ball(reference_ND, images_MD)


def density(reference_ND: np.ndarray, images_MD: np.ndarray) -> float:
    """Balls of reference images that an image lies in, mean over images / k: about 1 for one distribution, no bound."""
    radii_N = _radii(reference_ND, DENSITY_K)
    inside = sum((distances < radii_N).sum().item() for distances in _distances(images_MD, reference_ND))
    return inside / (DENSITY_K * len(images_MD))


def coverage(reference_ND: np.ndarray, images_MD: np.ndarray) -> float:
    """Share of the reference images whose ball has an image in it, in [0, 1]."""
    radii_N = _radii(reference_ND, DENSITY_K)
    nearest_N = torch.cat([distances.amin(dim=1) for distances in _distances(reference_ND, images_MD)])
    return (nearest_N < radii_N).double().mean().item()


def _share_in_any_ball(inner_ND: np.ndarray, outer_MD: np.ndarray) -> float:
    radii_M = _radii(outer_MD, PRECISION_K)
    inside = sum((distances <= radii_M).any(dim=1).sum().item() for distances in _distances(inner_ND, outer_MD))
    return inside / len(inner_ND)


def _radii(features_ND: np.ndarray, k: int) -> Tensor:
    """Distance of each to its k-th neighbour in the same set, itself not counted."""
    if len(features_ND) <= k:
        raise ValueError(f"expected more than {k} images in each set, found {len(features_ND)}")
    return torch.cat([distances.kthvalue(k + 1).values for distances in _distances(features_ND, features_ND)])


def _distances(rows_ND: np.ndarray, columns_MD: np.ndarray) -> Iterator[Tensor]:
    """Euclidean distances [up to BLOCK, M] of all rows. By differences: by products equal features are not quite at 0."""
    columns = torch.from_numpy(columns_MD)
    for rows in torch.from_numpy(rows_ND).split(BLOCK):
        yield torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")


def _register(
    name: str, k: int, unit: str, hint: str, definition: str, compute: Callable[[np.ndarray, np.ndarray], float]
) -> None:
    SET_METRICS.register(
        SetMetric(
            name=name,
            label=name.capitalize(),
            definition=definition,
            unit=unit,
            better="higher",
            hint=hint,
            needs="features",
            compute=compute,
            number_name=lambda extractor: f"{name}_{features_name(extractor)}",
            images_needed=lambda width: 10_000,  # as many as published numbers have: they fall with the number
            fewest=k + 1,
            record=lambda: {"k": k},
        )
    )


_register(
    "precision", PRECISION_K, "fraction", "how much of the set looks like held-out images",
    f"share of images within the {PRECISION_K}rd-neighbour ball of any reference image (Kynkäänniemi et al. 2019)", precision,
)  # fmt: skip
_register(
    "recall", PRECISION_K, "fraction", "how much of the held-out images the set reaches",
    f"share of reference images within the {PRECISION_K}rd-neighbour ball of any image (Kynkäänniemi et al. 2019)", recall,
)  # fmt: skip
_register(
    "density", DENSITY_K, "", "how densely the set lies where held-out images do; about 1 for equal sets",
    f"{DENSITY_K}th-neighbour balls of reference images around an image, mean / {DENSITY_K} (Naeem et al. 2020)", density,
)  # fmt: skip
_register(
    "coverage", DENSITY_K, "fraction", "how many of the held-out images have one of the set beside them",
    f"share of reference images with an image within their {DENSITY_K}th-neighbour ball (Naeem et al. 2020)", coverage,
)  # fmt: skip
