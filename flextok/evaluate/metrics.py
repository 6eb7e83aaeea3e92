"""Pixel metrics of one image against another, on 8-bit images scaled to [0, 1]."""

import numpy as np

# 10 log10(1 / MSE) has no bound for equal images; 100 dB stands for "equal".
MSE_FLOOR = 1e-10

PIXEL_METRICS = {
    "mae": "mean of |a - b| over pixels and channels of uint8 images / 255, per image, then averaged over images",
    "mse": "mean of (a - b)^2 over pixels and channels of uint8 images / 255, per image, then averaged over images",
    "psnr": "10 log10(1 / mse) in dB with peak 1 and at most 100, per image, then averaged over images",
}


def pixel_metrics(images_BHWC: np.ndarray, references_BHWC: np.ndarray) -> dict[str, np.ndarray]:
    """MAE, MSE and PSNR of each image: float64 arrays [B] under the names of `PIXEL_METRICS`, which defines them.

    Both are uint8 [B, H, W, C] of one shape; raises ValueError otherwise.
    """
    for name, array in (("images", images_BHWC), ("references", references_BHWC)):
        if array.dtype != np.uint8 or array.ndim != 4:
            raise ValueError(f"expected {name} as uint8 [B, H, W, C], found {array.dtype} {array.shape}")
    if images_BHWC.shape != references_BHWC.shape:
        raise ValueError(f"expected two equal shapes, found {images_BHWC.shape} and {references_BHWC.shape}")
    difference = (images_BHWC.astype(np.float64) - references_BHWC).reshape(len(images_BHWC), -1) / 255
    mse = np.square(difference).mean(axis=1)
    return {"mae": np.abs(difference).mean(axis=1), "mse": mse, "psnr": -10 * np.log10(np.maximum(mse, MSE_FLOOR))}
