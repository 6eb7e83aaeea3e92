"""Pixel metrics of one picture against another, on 8-bit pictures scaled to [0, 1]."""

import numpy as np

from flextok.metrics.base import IMAGE_METRICS, ImageMetric

# 10 log10(1 / MSE) has no bound for equal images; 100 dB stands for "equal".
MSE_FLOOR = 1e-10


def _difference(images_BHWC: np.ndarray, references_BHWC: np.ndarray) -> np.ndarray:
    return (images_BHWC.astype(np.float64) - references_BHWC).reshape(len(images_BHWC), -1) / 255


def _mae(images_BHWC: np.ndarray, references_BHWC: np.ndarray) -> np.ndarray:
    return np.abs(_difference(images_BHWC, references_BHWC)).mean(axis=1)


def _mse(images_BHWC: np.ndarray, references_BHWC: np.ndarray) -> np.ndarray:
    return np.square(_difference(images_BHWC, references_BHWC)).mean(axis=1)


def _psnr(images_BHWC: np.ndarray, references_BHWC: np.ndarray) -> np.ndarray:
    return -10 * np.log10(np.maximum(_mse(images_BHWC, references_BHWC), MSE_FLOOR))


MAE = "mean of |a - b| over pixels and channels of uint8 images / 255, per image, then averaged over images"
MSE = "mean of (a - b)^2 over pixels and channels of uint8 images / 255, per image, then averaged over images"
PSNR = "10 log10(1 / mse) in dB with peak 1 and at most 100, per image, then averaged over images"
IMAGE_METRICS.add("mae", ImageMetric("mae", MAE, "", "lower", _mae))
IMAGE_METRICS.add("mse", ImageMetric("mse", MSE, "", "lower", _mse))
IMAGE_METRICS.add("psnr", ImageMetric("psnr", PSNR, "dB", "higher", _psnr))
