"""Pixel metrics of one image against another, on 8-bit images scaled to [0, 1]."""

import numpy as np

from flextok.metrics.base import IMAGE_METRICS, STATISTICS, ImageMetric, Quantity

# 10 log10(1 / MSE) has no bound for equal images; 100 dB stands for "equal".
MSE_FLOOR = 1e-10


def mae(images_BHWC: np.ndarray, originals_BHWC: np.ndarray) -> np.ndarray:
    """Mean absolute error of each image, float64 [B] in [0, 1], of uint8 images."""
    return np.abs(_differences(images_BHWC, originals_BHWC)).mean(axis=1)


def mse(images_BHWC: np.ndarray, originals_BHWC: np.ndarray) -> np.ndarray:
    """Mean squared error of each image, float64 [B] in [0, 1], of uint8 images."""
    return np.square(_differences(images_BHWC, originals_BHWC)).mean(axis=1)


def psnr(images_BHWC: np.ndarray, originals_BHWC: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image in dB, float64 [B], 100 for equal images, of uint8 images."""
    return -10 * np.log10(np.maximum(mse(images_BHWC, originals_BHWC), MSE_FLOOR))


def _differences(images_BHWC: np.ndarray, originals_BHWC: np.ndarray) -> np.ndarray:
    return (images_BHWC.astype(np.float64) - originals_BHWC).reshape(len(images_BHWC), -1) / 255


IMAGE_METRICS.register(
    ImageMetric(
        name="mae",
        label="Pixel error (MAE)",
        definition="mean of |a - b| over pixels and channels of uint8 images / 255, per image, then averaged over images",
        unit="",
        better="lower",
        hint="mean |a − b| on a 0–1 scale",
        compute=mae,
    ),
)
IMAGE_METRICS.register(
    ImageMetric(
        name="mse",
        label="Squared pixel error (MSE)",
        definition="mean of (a - b)^2 over pixels and channels of uint8 images / 255, per image, then averaged over images",
        unit="",
        better="lower",
        hint="mean (a − b)² on a 0–1 scale",
        compute=mse,
        in_summary=False,  # says what PSNR says
    ),
)
IMAGE_METRICS.register(
    ImageMetric(
        name="psnr",
        label="PSNR",
        definition="10 log10(1 / mse) in dB with peak 1 and at most 100, per image, then averaged over images",
        unit="dB",
        better="higher",
        hint="higher is closer; mean of the images' own values",
        compute=psnr,
    ),
)
MAE_REDUCTION = STATISTICS.register(
    Quantity(
        name="mae_reduction",
        label="Fall of the pixel error",
        definition="1 - mae at the largest K / mae at the smallest K",
        unit="fraction",
        better="higher",
    )
)
