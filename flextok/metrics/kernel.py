"""The kernel distance of two sets of images (Bińkowski et al. 2018, KID), whose size does not depend on how many there are.

Called KID only where the features are those of the Inception network, as the Fréchet distance is called FID.
"""

from functools import partial

import numpy as np
import torch

from flextok.metrics.base import SET_METRICS, SetMetric, name_by_extractor

SUBSETS = 100
SEED = 2020
"""Of torch-fidelity, so that a number made by its own command is the same."""
KERNEL = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
SIZES = (100, 1000)
"""Images of a subset; a part of the name."""


def kernel_distance(reference_ND: np.ndarray, images_MD: np.ndarray, subset: int) -> float:
    """Unbiased squared maximum mean discrepancy under (x . y / D + 1)^3: the mean over 100 pairs of random subsets of
    `subset` features of each set. About 0 for two draws of one distribution, where it may be negative.

    Computed by torch-fidelity. Raises ValueError where a set has fewer features than `subset`.
    """
    from flextok.runtime import torchvision_compat  # noqa: F401  (torch-fidelity imports torchvision)

    # isort: split
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    fewest = min(len(reference_ND), len(images_MD))
    if fewest < subset:
        raise ValueError(f"expected at least {subset} images in each set, found {fewest}")
    pair = torch.from_numpy(images_MD), torch.from_numpy(reference_ND)
    made = kid_features_to_metric(
        *pair, kid_subsets=SUBSETS, kid_subset_size=subset, rng_seed=SEED, verbose=False, **KERNEL
    )
    return float(made[KEY_METRIC_KID_MEAN])


def kernel_name(subset: int, extractor: str) -> str:
    """Name of the distance: `kid_<subset>` for the Inception network, else `kd_<subset>_<extractor>`."""
    return name_by_extractor(extractor, f"kid_{subset}", f"kd_{subset}")


for size in SIZES:
    SET_METRICS.register(
        SetMetric(
            name=f"kernel_{size}",
            label=f"Kernel distance, subsets of {size}",
            definition=f"unbiased MMD^2 of features under (x . y / D + 1)^3 (Bińkowski et al. 2018), mean of {SUBSETS} "
            f"pairs of subsets of {size}, by torch-fidelity",
            unit="",
            better="lower",
            hint="distance of the set to held-out images, the same for few and many",
            needs="features",
            compute=partial(kernel_distance, subset=size),
            number_name=partial(kernel_name, size),
            images_needed=lambda width, size=size: size,
            fewest=size,
            record=lambda size=size: {"subsets": SUBSETS, "subset_images": size, "seed": SEED, **KERNEL},
        )
    )
