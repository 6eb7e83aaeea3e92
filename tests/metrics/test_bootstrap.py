"""Bootstrap intervals against what is known of a mean, and against the spread over sets that are really drawn anew."""

import numpy as np
import pytest

from flextok.metrics import SET_METRICS, SetMetric
from flextok.metrics.bootstrap import bootstrap
from flextok.metrics.frechet import frechet_distance, frechet_of_rows
from flextok.metrics.statistics import FeatureStatistics, GivenStatistics

MEAN = SetMetric(
    name="mean", definition="mean", unit="", better="", needs="features", uses_reference=False,
    compute=lambda _, images: float(images.mean()), number_name=lambda extractor: "mean",
)  # fmt: skip
FRECHET = SET_METRICS["frechet"]


def draw(count: int, seed: int, width: int = 6, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, size=(count, width))


def gathered(features: np.ndarray) -> FeatureStatistics:
    statistics = FeatureStatistics.empty(features.shape[1])
    statistics.add(features)
    return statistics


@pytest.mark.parametrize(("first", "second"), [(20, 30), (200, 150), (20, 150), (2, 2)])
def test_distance_of_features_is_torch_fidelitys_of_their_statistics(first: int, second: int) -> None:
    """Fewer and more features than they are wide, and a reference of statistics alone."""
    a, b = draw(first, 0, width=40), 1.5 * draw(second, 1, width=40, shift=0.3)
    expected = frechet_distance(gathered(a), gathered(b))
    assert frechet_of_rows(a, b) == pytest.approx(expected, rel=1e-6)
    given = GivenStatistics(a.mean(axis=0), np.cov(a, rowvar=False))
    assert frechet_of_rows(given, b) == pytest.approx(expected, rel=1e-5)
    assert abs(frechet_of_rows(a, a)) < 1e-9


def test_interval_of_a_mean_is_the_known_one() -> None:
    images = draw(300, 0, width=1)
    value = float(images.mean())
    found = bootstrap(MEAN, None, images, value, 4000, in_pairs=False)
    error = images.std(ddof=1) / np.sqrt(300)
    assert found.standard_error == pytest.approx(error, rel=0.05)
    assert (found.low - value, found.high - value) == pytest.approx((-1.96 * error, 1.96 * error), rel=0.07)
    assert found.resampled == "images"
    assert found == bootstrap(MEAN, None, images, value, 4000, in_pairs=False)


def spread_and_errors(count: int, given: bool) -> tuple[float, list[float]]:
    """Standard deviation of the distance over sets that are drawn anew, and standard errors of some of them."""
    whole = draw(20_000, 99)
    reference = GivenStatistics(whole.mean(axis=0), np.cov(whole, rowvar=False))
    sets = [(reference if given else draw(count, 1000 + seed), draw(count, seed, shift=0.2)) for seed in range(300)]
    values = [frechet_of_rows(*pair) for pair in sets]
    errors = [
        bootstrap(FRECHET, *pair, value, 100, in_pairs=False).standard_error
        for pair, value in zip(sets[:12], values[:12], strict=True)
    ]
    return float(np.std(values)), errors


@pytest.mark.parametrize("given", [True, False])
def test_standard_error_is_the_spread_over_new_images(given: bool) -> None:
    """With a reference that stays, and with one that is drawn as well."""
    spread, errors = spread_and_errors(200, given)
    assert np.mean(errors) == pytest.approx(spread, rel=0.25)


def test_reconstructions_are_drawn_with_their_originals() -> None:
    originals = draw(100, 0)
    alike = originals + 0.01 * draw(100, 1)
    value = frechet_of_rows(originals, alike)
    pairs = bootstrap(FRECHET, originals, alike, value, 50, in_pairs=True)
    apart = bootstrap(FRECHET, originals, alike, value, 50, in_pairs=False)
    assert (pairs.resampled, apart.resampled) == ("pairs", "images and reference")
    assert pairs.standard_error < 0.02 * apart.standard_error


@pytest.mark.parametrize("name", ["kernel_100", "precision", "recall", "density", "coverage", "inception_score", "spatial_frechet"])  # fmt: skip
def test_every_metric_of_sets_has_one(name: str) -> None:
    metric = SET_METRICS[name]
    reference, images = draw(120, 0), draw(120, 1, shift=0.5)
    value = (metric.of_rows or metric.compute)(reference, images)
    found = bootstrap(metric, reference if metric.uses_reference else None, images, value, 40, in_pairs=False)
    assert found.low < value < found.high
    assert 0 < found.standard_error < abs(value)


def test_fractions_stay_within_their_bounds() -> None:
    features = draw(80, 0)
    found = bootstrap(SET_METRICS["precision"], features, features, 1.0, 60, in_pairs=False)
    assert found.low < found.high == 1
    # Where but one draw is below 1, its mean is below what all the others gave.
    draws = iter([0.99] + [1.0] * 59)
    metric = SetMetric(**{**vars(SET_METRICS["precision"]), "of_rows": lambda reference, images: next(draws)})
    found = bootstrap(metric, features, features, 1.0, 60, in_pairs=False)
    assert found.low <= found.high == 1


def test_metrics_of_statistics_without_a_faster_way_go_by_them() -> None:
    slow = SetMetric(**{**vars(FRECHET), "of_rows": None})
    reference, images = draw(50, 0), draw(60, 1)
    value = frechet_of_rows(reference, images)
    fast = bootstrap(FRECHET, reference, images, value, 40, in_pairs=False)
    assert bootstrap(slow, reference, images, value, 40, in_pairs=False).standard_error == pytest.approx(
        fast.standard_error, rel=1e-6
    )
