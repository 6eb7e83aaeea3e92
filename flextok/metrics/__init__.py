"""Metrics, one register for length policies, evaluation, report and documents. A new metric is one file here.

A number for each image against its original (`ImageMetric`):

    IMAGE_METRICS.register(ImageMetric(
        name="max_error", definition="largest |a - b| of uint8 images / 255", unit="", better="lower",
        label="Largest error", compute=lambda images, originals: ...,
    ))

A number for a set of images against a reference set (`SetMetric`) works on features of both; see `flextok.metrics.base`.
A recipe names them: `evaluation: {metrics: [mae, mse, psnr, max_error], set_metrics: [frechet]}`.
"""

from flextok.metrics.base import IMAGE_METRICS, SET_METRICS, ImageMetric, SetMetric

__all__ = ["IMAGE_METRICS", "SET_METRICS", "ImageMetric", "SetMetric"]
