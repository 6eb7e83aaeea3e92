"""The metrics of sets against slow references of their own, and torch-fidelity from images to numbers."""

import numpy as np
import pytest
from bare_pictures import Pictures

from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig
from flextok.evaluate.features import load_extractor
from flextok.evaluate.measure import ImageSets
from flextok.metrics import SET_METRICS
from flextok.metrics.base import SetMetric
from flextok.metrics.kernel import kernel_distance, kernel_name
from flextok.metrics.manifold import DENSITY_K, PRECISION_K, coverage, density, precision, recall

WIDTH = 6
NEW = ("kernel_100", "kernel_1000", "precision", "recall", "density", "coverage")


def draw(count: int, seed: int, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, spread, size=(count, WIDTH))


def radius(features: np.ndarray, index: int, k: int) -> float:
    """Distance of one feature to the k-th nearest other one."""
    others = np.delete(features, index, axis=0)
    return sorted(np.linalg.norm(others - features[index], axis=1))[k - 1]


def shares(reference: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Precision, recall, density and coverage by their definitions, one pair after the other."""
    near = {k: [radius(reference, i, k) for i in range(len(reference))] for k in (PRECISION_K, DENSITY_K)}
    around_images = [radius(images, i, PRECISION_K) for i in range(len(images))]
    apart = np.array([[np.linalg.norm(a - b) for b in reference] for a in images])
    return {
        "precision": np.mean([any(apart[j] <= near[PRECISION_K]) for j in range(len(images))]),
        "recall": np.mean([any(apart[:, i] <= around_images) for i in range(len(reference))]),
        "density": np.mean([sum(apart[j] < near[DENSITY_K]) for j in range(len(images))]) / DENSITY_K,
        "coverage": np.mean([any(apart[:, i] < near[DENSITY_K][i]) for i in range(len(reference))]),
    }


@pytest.mark.parametrize(
    ("images", "shift", "spread"), [(60, 0.0, 1.0), (45, 0.7, 1.0), (90, 0.0, 0.4), (50, 9.0, 1.0)]
)
def test_shares_are_those_of_their_definitions(images: int, shift: float, spread: float) -> None:
    reference, made = draw(70, seed=0), draw(images, 1, shift, spread)
    expected = shares(reference, made)
    for metric in (precision, recall, density, coverage):
        assert metric(reference, made) == pytest.approx(expected[metric.__name__], abs=1e-12), metric.__name__
    assert (expected["precision"] == 0) == (shift == 9.0)


def test_blocks_change_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, made = draw(70, 0), draw(50, 1, 0.5)
    whole = [metric(reference, made) for metric in (precision, recall, density, coverage)]
    monkeypatch.setattr("flextok.metrics.manifold.BLOCK", 7)
    assert [metric(reference, made) for metric in (precision, recall, density, coverage)] == whole


def test_a_set_covers_itself() -> None:
    features = draw(64, 0)
    assert precision(features, features) == recall(features, features) == coverage(features, features) == 1
    assert density(features, features) == 1  # itself and its 4 nearest, seen from the reference: k balls a feature


def test_kernel_distance_of_whole_sets_is_the_unbiased_estimate() -> None:
    """Where a subset is all there is, the mean over subsets is the sum over pairs of different features."""
    reference, images = draw(40, 0), draw(40, 1, shift=0.3)

    def mean_kernel(first: np.ndarray, second: np.ndarray, of_one_set: bool) -> float:
        pairs = [(i, j) for i in range(40) for j in range(40) if not (of_one_set and i == j)]
        return float(np.mean([(first[i] @ second[j] / WIDTH + 1) ** 3 for i, j in pairs]))

    expected = mean_kernel(reference, reference, True) + mean_kernel(images, images, True)
    expected -= 2 * mean_kernel(reference, images, False)
    assert kernel_distance(reference, images, subset=40) == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(images, reference, subset=40) == pytest.approx(expected, rel=1e-9)


def test_halves_of_one_set_are_near_and_others_are_not() -> None:
    first, second, other = draw(1000, 0), draw(1000, 1), draw(1000, 2, shift=0.5)
    assert abs(kernel_distance(first, second, 100)) < 0.02 < kernel_distance(first, other, 100)


def test_agrees_with_torch_fidelity_from_images_to_numbers() -> None:
    """KID, precision and recall by its own command on the same pictures."""
    extractor = load_extractor("random_conv")
    from torch_fidelity import calculate_metrics

    random = np.random.default_rng(0)
    images, reference = (random.integers(0, high, (120, 16, 16, 3), dtype=np.uint8) for high in (200, 256))
    expected = calculate_metrics(
        input1=Pictures(images), input2=Pictures(reference), kid=True, kid_subset_size=100, prc=True, cuda=False, cache=False,
        feature_extractor="random_conv", save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    features = extractor(reference), extractor(images)
    ours = {name: SET_METRICS[name].compute(*features) for name in ("kernel_100", "precision", "recall")}
    assert ours["kernel_100"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["precision"] == pytest.approx(expected["precision"], abs=0.02)
    assert ours["recall"] == pytest.approx(expected["recall"], abs=0.02)


@pytest.mark.parametrize("name", NEW)
def test_too_few_images_are_refused_before_any_work(name: str) -> None:
    sets = ImageSets(EvaluationConfig(extractor="random_conv", set_metrics=(name,)), "cpu")
    fewest = SET_METRICS[name].fewest
    sets.require(fewest, "corpus")
    with pytest.raises(UsageError, match=f"at least {fewest} images for {name}, found {fewest - 1} in corpus"):
        sets.require(fewest - 1, "corpus")
    with pytest.raises(ValueError, match="images in each set"):
        SET_METRICS[name].compute(draw(fewest - 1, 0), draw(fewest - 1, 1))


def test_names_say_features_and_subset() -> None:
    assert kernel_name(1000, "inception-v3-compat") == "kid_1000"
    assert kernel_name(100, "efficientnet_lite0") == "kd_100_efficientnet_lite0"
    names = [metric.called("dinov2-vit-b-14") for metric in SET_METRICS if isinstance(metric, SetMetric)]
    assert len(set(names)) == len(names)
    record = SET_METRICS["kernel_1000"].protocol({"width": 8}, 500, {"images": 5000})
    assert (record["subset_images"], record["seed"], record["small_sample"]) == (1000, 2020, True)
