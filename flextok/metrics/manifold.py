"""How much of one set lies where the other is, by balls around each feature that reach to its k-th neighbour.

Precision and recall of Kynkäänniemi et al. 2019, density and coverage of Naeem et al. 2020.
"""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

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
    _require(reference_ND, DENSITY_K)
    _, balls, _ = _once(_seen_from_images, images_MD, reference_ND)
    return balls / (DENSITY_K * len(images_MD))


def coverage(reference_ND: np.ndarray, images_MD: np.ndarray) -> float:
    """Share of the reference images whose ball has an image in it, in [0, 1]."""
    _require(reference_ND, DENSITY_K)
    _, _, nearest_N = _once(_seen_from_images, images_MD, reference_ND)
    return (nearest_N < _once(_neighbours, reference_ND)[:, DENSITY_K]).double().mean().item()


def _share_in_any_ball(inner_ND: np.ndarray, outer_MD: np.ndarray) -> float:
    _require(outer_MD, PRECISION_K)
    inside, _, _ = _once(_seen_from_images, inner_ND, outer_MD)
    return inside / len(inner_ND)


def _seen_from_images(images_MD: np.ndarray, reference_ND: np.ndarray) -> tuple[int, int, Tensor]:
    """By one pass over the distances: images in any ball of precision, balls of density around images, and the distance
    [N] of each reference image to the nearest image."""
    neighbours = _once(_neighbours, reference_ND)
    narrow_N, wide_N = neighbours[:, PRECISION_K], neighbours[:, DENSITY_K]
    inside, balls, nearest_N = 0, 0, torch.full_like(narrow_N, torch.inf)
    for distances in _distances(images_MD, reference_ND):
        inside += int((distances <= narrow_N).any(dim=1).sum())
        balls += int((distances < wide_N).sum())
        nearest_N = torch.minimum(nearest_N, distances.amin(dim=0))
    return inside, balls, nearest_N


def _require(features_ND: np.ndarray, k: int) -> None:
    if len(features_ND) <= k:
        raise ValueError(f"expected more than {k} images in each set, found {len(features_ND)}")


def _neighbours(features_ND: np.ndarray) -> Tensor:
    """Distances [N, 6] of each to itself and its nearest neighbours, ascending; inf where there are no more."""
    found = []
    for distances in _distances(features_ND, features_ND):
        nearest = distances.topk(min(DENSITY_K + 1, len(features_ND)), largest=False).values
        found.append(torch.nn.functional.pad(nearest, (0, DENSITY_K + 1 - nearest.shape[1]), value=torch.inf))
    return torch.cat(found)


_found: dict[Any, Any] = {}


def _once(compute: Callable[..., Any], *arrays: np.ndarray) -> Any:
    """`compute(*arrays)`, kept while these arrays live: metrics share distances, and numbers of one reference its balls."""
    place = compute, *map(id, arrays)
    if place not in _found:
        _found[place] = compute(*arrays)
        for array in arrays:
            weakref.finalize(array, _found.pop, place, None)
    return _found[place]


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
