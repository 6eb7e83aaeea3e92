"""The Fréchet distance: its properties, and torch-fidelity end to end as the oracle."""

import numpy as np
import pytest
from bare_pictures import Pictures

from flextok.evaluate.features import load_extractor
from flextok.metrics import SET_METRICS
from flextok.metrics.frechet import distance_name, frechet_distance
from flextok.metrics.statistics import FeatureStatistics

WIDTH = 12


def gathered(features: np.ndarray) -> FeatureStatistics:
    statistics = FeatureStatistics.empty(features.shape[1])
    statistics.add(features)
    return statistics


def draw(count: int, seed: int, spread: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=spread, size=(count, WIDTH))


def test_distance_of_a_set_to_itself_is_zero():
    features = draw(200, seed=0)
    assert abs(frechet_distance(gathered(features), gathered(features))) < 1e-9


def test_distance_is_symmetric():
    first, second = gathered(draw(200, seed=0)), gathered(draw(300, seed=1, spread=2.0))
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)


def test_distance_of_known_gaussians():
    # For N(0, 1) and N(m, s^2) in each of D dimensions the distance is D (m^2 + (1 - s)^2).
    features = draw(500, seed=0)
    features = (features - features.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(features, rowvar=False))).T
    distance = frechet_distance(gathered(features), gathered(3 * features + 0.5))
    assert distance == pytest.approx(WIDTH * (0.5**2 + 2**2), rel=1e-9)


def test_more_noise_is_farther_away():
    clean = draw(400, seed=0)
    distances = [
        frechet_distance(gathered(clean), gathered(clean + draw(400, seed=1, spread=spread)))
        for spread in (0.1, 0.5, 1.0, 2.0)
    ]
    assert distances == sorted(distances)


def test_merging_shards_in_any_order_is_one_pass():
    features = draw(90, seed=0)
    whole = gathered(features)
    parts = [gathered(features[start : start + 30]) for start in (60, 0, 30)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean(), features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance(), np.cov(features, rowvar=False), rtol=1e-9, atol=1e-12)


def test_too_few_vectors_are_told():
    def is_small(images: int, of_reference: int) -> bool:
        record = SET_METRICS["frechet"].protocol({"width": WIDTH}, images, {"images": of_reference})
        return record["small_sample"]

    assert is_small(2 * WIDTH - 1, 100) and is_small(100, 2 * WIDTH - 1)
    assert not is_small(2 * WIDTH, 2 * WIDTH)
    with pytest.raises(ValueError, match="at least 2"):
        gathered(draw(1, seed=0)).covariance()


def test_features_that_do_not_fit_are_refused():
    statistics = FeatureStatistics.empty(WIDTH)
    with pytest.raises(ValueError, match="12"):
        statistics.add(np.zeros((3, WIDTH + 1)))
    with pytest.raises(ValueError, match="finite"):
        statistics.add(np.full((3, WIDTH), np.nan))


def test_agrees_with_torch_fidelity_from_images_to_distance():
    extractor = load_extractor("random_conv")
    from torch_fidelity import calculate_metrics

    random = np.random.default_rng(0)
    sets = [random.integers(0, high, (100, 16, 16, 3), dtype=np.uint8) for high in (256, 128)]
    statistics = []
    for images in sets:
        statistics.append(FeatureStatistics.empty(extractor.width))
        for start in range(0, len(images), 7):
            statistics[-1].add(extractor(images[start : start + 7]))
    first, second = map(Pictures, sets)
    expected = calculate_metrics(
        input1=first, input2=second, fid=True, feature_extractor="random_conv", cuda=False, cache=False,
        save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    ours = frechet_distance(*statistics)
    assert ours > 0
    assert ours == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


@pytest.mark.parametrize(
    ("extractor", "name"),
    [
        ("inception-v3-compat", "fid"),
        ("efficientnet_lite0", "fd_efficientnet_lite0"),
        ("dinov2-vit-b-14", "fd_dinov2_vit_b_14"),
    ],
)
def test_only_the_inception_distance_is_called_fid(extractor: str, name: str):
    assert distance_name(extractor) == name
