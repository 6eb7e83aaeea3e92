"""SSIM beside scikit-image's, MS-SSIM beside pytorch-msssim's, whose windows are in float32: 1e-5."""

import numpy as np
import pytest
import pytorch_msssim
import torch
from skimage.metrics import structural_similarity

from flextok.errors import UsageError
from flextok.evaluate.measure import ImageTable
from flextok.metrics import IMAGE_METRICS
from flextok.metrics.structure import SMALLEST_PX, ms_ssim, ssim


def pictures(height: int, width: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures with shapes and shades, and noisy ones before them: uint8 [2, H, W, 3] each."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    shades = np.stack([np.sin(6 * x + 3 * y), np.cos(9 * y), (np.hypot(x - 0.4, y - 0.5) < 0.3) * 2.0 - 1], axis=-1)
    originals = np.stack([shades, shades[:, ::-1]]) * 100 + 127
    noisy = originals + random.normal(0, noise, originals.shape)
    return noisy.clip(0, 255).astype(np.uint8), originals.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "noise"), [(48, 64, 0.5), (64, 48, 40.0), (11, 11, 10.0), (161, 170, 90.0)]
)
def test_ssim_is_that_of_scikit_image(height: int, width: int, noise: float) -> None:
    images, originals = pictures(height, width, noise)
    expected = [
        structural_similarity(
            image / 255, original / 255, channel_axis=-1, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for image, original in zip(images, originals, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(ssim(images, originals), expected, atol=1e-12)


@pytest.mark.parametrize(("height", "width", "noise"), [(176, 192, 0.5), (192, 176, 30.0), (256, 256, 90.0)])
def test_both_are_those_of_pytorch_msssim(height: int, width: int, noise: float) -> None:
    """Sides that can be halved four times: at odd ones it takes in zeros."""
    images, originals = pictures(height, width, noise)
    pair = [torch.tensor(each).permute(0, 3, 1, 2).double() / 255 for each in (images, originals)]
    for ours, theirs in ((ssim, pytorch_msssim.ssim), (ms_ssim, pytorch_msssim.ms_ssim)):
        expected = theirs(*pair, data_range=1.0, size_average=False).numpy()
        np.testing.assert_allclose(ours(images, originals), expected, atol=1e-5)


@pytest.mark.parametrize("metric", [ssim, ms_ssim])
def test_equal_pictures_have_1_and_batches_change_nothing(metric) -> None:
    images, originals = pictures(175, 161, 20.0)
    np.testing.assert_allclose(metric(originals, originals), 1, atol=1e-12)
    assert metric(images, originals).tolist() == [metric(images[i : i + 1], originals[i : i + 1])[0] for i in range(2)]
    assert (metric(*pictures(175, 161, 60.0)) < metric(images, originals)).all()


@pytest.mark.parametrize(("name", "smallest"), [("ssim", 11), ("ms_ssim", SMALLEST_PX)])
def test_pictures_that_are_too_small_are_refused_before_any_work(name: str, smallest: int) -> None:
    table = ImageTable([name])
    table.require(smallest)
    assert np.isfinite(IMAGE_METRICS[name](*pictures(smallest, smallest, 5.0))).all()
    with pytest.raises(UsageError, match=f"at least {smallest} px for {name}, found {smallest - 1} px"):
        table.require(smallest - 1)
    with pytest.raises(ValueError, match=f"at least {smallest} px for {name}, found {smallest - 1} x {smallest + 9}"):
        IMAGE_METRICS[name](*pictures(smallest - 1, smallest + 9, 5.0))
