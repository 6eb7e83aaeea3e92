"""The pictures on the page, as rows of data URIs."""

import base64
import io
import itertools
from collections.abc import Sequence
from typing import Any

from PIL import Image

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore
from flextok.evaluate.config import ReportConfig
from flextok.evaluate.grid import LATENTS, ORIGINAL, StoredPictures
from flextok.evaluate.sampling import SamplesResult, image_url

# Larger pictures are shrunk for the page, or it would weigh tens of megabytes.
THUMBNAIL_PX = 128


def reconstruction_rows(grid: list[StoredPictures], corpus: Corpus, keeps: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each image: the original, at each K, and through the latents alone."""
    return [
        {
            "caption": _class_name(corpus, stored.label) or stored.key,
            "pictures": [picture(stored.png[k]) for k in (ORIGINAL, *keeps, LATENTS)],
        }
        for stored in grid
    ]


def _class_name(corpus: Corpus, label: int | None) -> str | None:
    classes = corpus.classes or []
    return classes[label] if label is not None and 0 <= label < len(classes) else None


def sample_rows(samples: SamplesResult, store: TokenStore, config: ReportConfig) -> list[dict[str, Any]]:
    """A row for each class or caption: its first sample at each K, then more samples at the largest."""
    groups: dict[tuple[int, str], list[str]] = {}
    for key, label, text in zip(store.keys(), store.labels().tolist(), store.texts(), strict=True):
        caption = text or (f"class {label}" if label >= 0 else "no condition")
        groups.setdefault((label, caption), []).append(key)
    rows = []
    for (_, caption), keys in itertools.islice(sorted(groups.items()), config.max_classes):
        growing = [_sample(samples, keep, keys[0]) for keep in samples.keep]
        more = [_sample(samples, samples.keep[-1], key) for key in keys[1 : config.samples_per_class]]
        rows.append({"caption": caption, "growing": growing, "more": more})
    return rows


def _sample(samples: SamplesResult, keep: int, key: str) -> str:
    return picture(storage.read_bytes(image_url(samples.url, keep, key)))


def picture(png: bytes) -> str:
    """A PNG as a data URI, shrunk where it is larger than the page shows it."""
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    if max(image.size) > THUMBNAIL_PX:
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, format="PNG")
        png = file.getvalue()
    return "data:image/png;base64," + base64.b64encode(png).decode()
