"""Structural similarity of one image with another: SSIM, and MS-SSIM over five scales.

Windows by scipy, in float64 and image by image: what torch gives in float32 depends on batch and threads, and so would
the digest of an evaluation.
"""

from typing import Any

import numpy as np

from flextok.metrics.base import IMAGE_METRICS, ImageMetric

RADIUS_PX, SIGMA_PX = 5, 1.5
C1, C2 = 0.01**2, 0.03**2
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales by Wang et al. 2003, each half as large as the one before."""
WINDOW_PX = 2 * RADIUS_PX + 1
SMALLEST_PX = (WINDOW_PX - 1) * 2 ** (len(SCALES) - 1) + 1
"""Of MS-SSIM: the window fits in the last scale."""
RECORD: dict[str, Any] = {
    "window_px": WINDOW_PX, "sigma_px": SIGMA_PX, "k": [0.01, 0.03], "range": 1, "border": "left out",
    "channels": "RGB, each alone",
}  # fmt: skip


def ssim(images_BHWC: np.ndarray, originals_BHWC: np.ndarray) -> np.ndarray:
    """SSIM (Wang et al. 2004, eq. 13) of each image, float64 [B] in [-1, 1], 1 for equal images, of uint8 images.

    Mean over the places where the whole window lies in the image, and over channels.
    """
    return np.array([np.mean(_similarities(*pair)[0]) for pair in _scaled(images_BHWC, originals_BHWC)])


def ms_ssim(images_BHWC: np.ndarray, originals_BHWC: np.ndarray) -> np.ndarray:
    """MS-SSIM (Wang et al. 2003, eq. 7) of each image, float64 [B] in [0, 1], 1 for equal images, of uint8 images.

    The weighted product of contrast and structure in the first four scales and of SSIM in the last, of each channel, where
    what is below 0 counts as 0; then the mean over channels.
    """
    return np.array([_over_scales(*pair) for pair in _scaled(images_BHWC, originals_BHWC)])


def _over_scales(image_HWC: np.ndarray, original_HWC: np.ndarray) -> float:
    product_C = np.ones(image_HWC.shape[-1])
    for scale, weight in enumerate(SCALES):
        if scale > 0:
            image_HWC, original_HWC = _halved(image_HWC), _halved(original_HWC)
        whole_C, structure_C = _similarities(image_HWC, original_HWC)
        product_C *= np.maximum(whole_C if scale == len(SCALES) - 1 else structure_C, 0) ** weight
    return float(product_C.mean())


def _similarities(image_HWC: np.ndarray, original_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SSIM of each channel, and its factor of contrast and structure alone: means over places, float64 [C]."""
    mean_a, mean_b = _windows(image_HWC), _windows(original_HWC)
    variance_a = _windows(image_HWC**2) - mean_a**2
    variance_b = _windows(original_HWC**2) - mean_b**2
    covariance = _windows(image_HWC * original_HWC) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return (luminance * structure).mean(axis=(0, 1)), structure.mean(axis=(0, 1))


def _windows(values_HWC: np.ndarray) -> np.ndarray:
    """Gaussian means around each place whose whole window is there."""
    from scipy.ndimage import gaussian_filter

    inner = slice(RADIUS_PX, -RADIUS_PX)
    return gaussian_filter(values_HWC, SIGMA_PX, radius=RADIUS_PX, axes=(0, 1))[inner, inner]


def _halved(image_HWC: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd side is continued by its last row or column."""
    height, width, channels = image_HWC.shape
    even = np.pad(image_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, channels).mean(axis=(1, 3))


def _scaled(images_BHWC: np.ndarray, originals_BHWC: np.ndarray) -> "zip[tuple[np.ndarray, np.ndarray]]":
    return zip(images_BHWC / 255, originals_BHWC / 255, strict=True)


IMAGE_METRICS.register(
    ImageMetric(
        name="ssim",
        label="SSIM",
        definition="structural similarity (Wang et al. 2004) on the scale 0 to 1, Gaussian window of 11 px and sigma 1.5, no "
        "border, each channel of RGB alone, per image, then averaged over images",
        unit="",
        better="higher",
        hint="likeness of local structure; 1 is equal",
        compute=ssim,
        smallest_px=WINDOW_PX,
        record=lambda: RECORD,
    ),
)
IMAGE_METRICS.register(
    ImageMetric(
        name="ms_ssim",
        label="MS-SSIM",
        definition="structural similarity over 5 scales (Wang et al. 2003), else as ssim; images of 161 px or more",
        unit="",
        better="higher",
        hint="likeness of structure from fine to coarse; 1 is equal",
        compute=ms_ssim,
        smallest_px=SMALLEST_PX,
        record=lambda: {**RECORD, "scales": list(SCALES)},
    ),
)
