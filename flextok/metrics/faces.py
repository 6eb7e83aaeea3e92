"""How like themselves the faces of an image still are: by the features that a recogniser gives of them (TokBench)."""

import numpy as np

from flextok.metrics.base import CONTENT_METRICS, ContentMetric


def face_similarity(features_RD: np.ndarray, originals_RD: np.ndarray) -> np.ndarray:
    """The cosine of each face's features and those of its original, float64 [R]."""
    norms = np.linalg.norm(features_RD, axis=1) * np.linalg.norm(originals_RD, axis=1)
    return (features_RD * originals_RD).sum(axis=1) / norms


CONTENT_METRICS.register(
    ContentMetric(
        name="face_similarity",
        label="Likeness of faces",
        definition="cosine of the features of a face and of its original, both cut out by its box, mean over an image's faces, "
        "then over images",
        unit="",
        better="higher",
        hint="whether a face is still that of the same person; 1 is equal",
        compute=face_similarity,
        content="faces",
    )
)
