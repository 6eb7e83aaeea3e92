"""MAE, MSE and PSNR against loops over pixels."""

import math

import numpy as np
import pytest

from flextok.metrics import IMAGE_METRICS


def pixel_metrics(images: np.ndarray, originals: np.ndarray) -> dict[str, np.ndarray]:
    return {name: IMAGE_METRICS[name](images, originals) for name in ("mae", "mse", "psnr")}


def pair() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    first, second = (random.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8) for _ in range(2))
    return first, second


def test_agree_with_a_loop_over_pixels():
    first, second = pair()
    found = pixel_metrics(first, second)
    for image in range(len(first)):
        differences = [(int(a) - int(b)) / 255 for a, b in zip(first[image].flat, second[image].flat, strict=True)]
        mse = sum(d * d for d in differences) / len(differences)
        assert found["mae"][image] == pytest.approx(sum(map(abs, differences)) / len(differences))
        assert found["mse"][image] == pytest.approx(mse)
        assert found["psnr"][image] == pytest.approx(10 * math.log10(1 / mse))


def test_equal_images():
    first, _ = pair()
    found = pixel_metrics(first, first)
    assert set(found["mae"]) == {0.0}
    assert found["psnr"] == pytest.approx(100.0)


def test_black_against_white_is_one():
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert pixel_metrics(black, white)["mae"] == [1.0]


@pytest.mark.parametrize(
    "wrong", [np.zeros((3, 4, 5, 3)), np.zeros((3, 5, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)]
)
def test_other_types_and_shapes_are_refused(wrong: np.ndarray):
    with pytest.raises(ValueError, match="expected"):
        pixel_metrics(wrong, pair()[0])
