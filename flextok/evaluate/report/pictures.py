"""The pictures on the page, as data URIs in the best encoding that keeps the page small."""

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore
from flextok.evaluate.config import ReportConfig
from flextok.evaluate.grid import LATENTS, ORIGINAL, StoredPictures
from flextok.evaluate.samples.layout import image_url
from flextok.evaluate.sampling import SamplesResult
from flextok.metrics.base import IMAGE_METRICS

MOST_BYTES = 2_600_000
"""Of all picture files together, each as often as it is shown: three and a half megabytes as text, so that the page with all
its numbers and charts stays below five."""
MEASURED = 16
"""Pictures whose files are looked at before an encoding is chosen for all."""


@dataclass(frozen=True)
class Encoding:
    """How pictures are written: WebP, whose lossless files are smaller than PNG's (docs/report.md)."""

    side_px: int
    """Larger ones are shrunk to it."""
    quality: int | None
    """None: lossless."""

    def __str__(self) -> str:
        how = "lossless WebP" if self.quality is None else f"WebP of quality {self.quality}"
        return f"{how}, at most {self.side_px} px a side"

    def encode(self, png: bytes) -> bytes:
        """The file of a picture."""
        image = Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")
        image.thumbnail((self.side_px, self.side_px), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        how = {"lossless": True} if self.quality is None else {"quality": self.quality}
        image.save(file, format="WEBP", method=4, **how)
        return file.getvalue()


# The first that fits is taken. Fewer pixels come before a quality at which the encoding would be seen in differences.
ENCODINGS = (
    Encoding(256, None),
    Encoding(256, 90),
    Encoding(192, 90),
    Encoding(128, 90),
    Encoding(128, 75),
    Encoding(96, 75),
    Encoding(64, 60),
)


class Album:
    """Pictures of a page by number; equal ones have the same, and stand in the page each time they are shown."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._uses: list[int] = []

    def add(self, png: bytes) -> int:
        """The number of a picture, which is shown once more."""
        number = self._numbers.setdefault(png, len(self._numbers))
        if number == len(self._uses):
            self._uses.append(0)
        self._uses[number] += 1
        return number

    def written(self) -> tuple[Encoding, list[str]]:
        """Each picture as a data URI, by number, in the best of `ENCODINGS` in which all that is shown is within MOST_BYTES
        (the last where none is). Some of them tell beforehand which are not worth trying on all."""
        pictures = list(self._numbers)
        some = range(0, len(pictures), len(pictures) // MEASURED + 1)
        shown, shown_of_some = sum(self._uses), sum(self._uses[number] for number in some)
        for encoding in ENCODINGS[:-1]:
            sizes = (len(encoding.encode(pictures[number])) * self._uses[number] for number in some)
            if sum(sizes) * shown <= MOST_BYTES * shown_of_some:
                files = list(map(encoding.encode, pictures))
                if sum(len(file) * uses for file, uses in zip(files, self._uses, strict=True)) <= MOST_BYTES:
                    return encoding, list(map(_uri, files))
        return ENCODINGS[-1], [_uri(ENCODINGS[-1].encode(png)) for png in pictures]


def _uri(file: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(file).decode()


def reconstruction_rows(
    album: Album, grid: list[StoredPictures], corpus: Corpus, keeps: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each image: the original, at each K, and through the latents alone."""
    return [
        {
            "caption": _caption(corpus, stored.label, stored.key),
            "original": album.add(stored.png[ORIGINAL]),
            "pictures": [album.add(stored.png[k]) for k in (*keeps, LATENTS)],
        }
        for stored in grid
    ]


def extreme_rows(album: Album, extremes: list[dict[str, Any]], corpus: Corpus) -> list[dict[str, Any]]:
    """For each metric its label and the pictures at both ends, each with original, caption and value."""
    rows: dict[str, dict[str, Any]] = {}
    for each in extremes:
        metric = IMAGE_METRICS[each["metric"]]
        row = rows.setdefault(metric.name, {"metric": metric.title, "k": each["k"], "best": [], "worst": []})
        row[each["end"]].append(
            {
                "caption": _caption(corpus, each["label"], each["key"]),
                "value": f"{each['value']:.3g}",
                "original": album.add(each["original"]),
                "picture": album.add(each["png"]),
            }
        )
    return list(rows.values())


def _caption(corpus: Corpus, label: int | None, key: str) -> str:
    classes = corpus.classes or []
    return classes[label] if label is not None and 0 <= label < len(classes) else key


def sample_rows(album: Album, samples: SamplesResult, store: TokenStore, config: ReportConfig) -> list[dict[str, Any]]:
    """A row for each class or caption: its first sample at each K, then more samples at the largest. Only of samples that
    have pictures."""
    groups: dict[tuple[int, str], list[str]] = {}
    rows_of_samples = zip(store.keys(), store.labels().tolist(), store.texts(), strict=True)
    for key, label, text in itertools.islice(rows_of_samples, samples.pictures):
        caption = text or (f"class {label}" if label >= 0 else "no condition")
        groups.setdefault((label, caption), []).append(key)

    def sample(keep: int, key: str) -> int:
        return album.add(storage.read_bytes(image_url(samples.url, keep, key)))

    rows = []
    for (_, caption), keys in itertools.islice(sorted(groups.items()), config.max_classes):
        growing = [sample(keep, keys[0]) for keep in samples.keep]
        more = [sample(samples.keep[-1], key) for key in keys[1 : config.samples_per_class]]
        rows.append({"caption": caption, "growing": growing, "more": more})
    return rows
