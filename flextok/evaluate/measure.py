"""Metrics of pictures as they go by: each against its original, and whole sets against the set of originals."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flextok.evaluate.config import SetComparisonConfig
from flextok.evaluate.features import load_extractor
from flextok.evaluate.grid import ORIGINAL, parquet_bytes
from flextok.evaluate.images import ImageBatch
from flextok.evaluate.results import Metric
from flextok.metrics.base import IMAGE_METRICS, SET_METRICS, ImageMetric, SetMetric
from flextok.metrics.statistics import FeatureRows, FeatureStatistics


@dataclass(frozen=True)
class Pictures:
    """A batch of pictures uint8 [B, H, W, 3] of the set `k`: a number of tokens, or a name such as ORIGINAL."""

    k: int
    images_BHWC: np.ndarray
    originals: ImageBatch | None = None
    """What each picture is compared with; None: it only enters its set."""
    in_sets_B: np.ndarray | None = None
    """Which of them enter their set, bool; None: all."""


def measure(pictures: Iterable[Pictures], sets: "ImageSets", table: "ImageTable | None" = None) -> None:
    """Take in all of `pictures`, of any sets in any order; memory holds one batch."""
    for part in pictures:
        if table is not None and part.originals is not None:
            table.add(part.k, part.images_BHWC, part.originals)
        chosen = part.images_BHWC if part.in_sets_B is None else part.images_BHWC[part.in_sets_B]
        if len(chosen):
            sets.add(part.k, chosen)


class ImageTable:
    """The metrics `names` of every image in every set, in long form."""

    def __init__(self, names: Sequence[str]):
        self.metrics: list[ImageMetric] = [IMAGE_METRICS[name] for name in names]
        self._keys: list[str] = []
        self._labels: list[int | None] = []
        self._k: list[int] = []
        self._values: dict[str, list[float]] = {name: [] for name in names}

    def add(self, k: int, images_BHWC: np.ndarray, originals: ImageBatch) -> None:
        """Measure a batch of the set `k`."""
        self._keys += originals.keys
        self._labels += originals.labels
        self._k += [k] * len(originals)
        for metric in self.metrics:
            self._values[metric.name] += metric(images_BHWC, originals.images_BHWC).tolist()

    def values(self, name: str, k: int) -> np.ndarray:
        """The metric `name` of the images in the set `k`, float64 [N]."""
        return np.array(self._values[name])[np.array(self._k) == k]

    def mean(self, metric: ImageMetric, k: int, protocol: dict[str, Any], prefix: str = "") -> Metric:
        """The mean over the images of the set `k`; `protocol` says how they were made."""
        values = self.values(metric.name, k)
        record = {**protocol, "definition": metric.definition, **metric.record()}
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        return Metric(prefix + metric.name, float(values.mean()), record, k if k > ORIGINAL else None, error)

    def to_parquet(self) -> bytes:
        """Columns key, label, k, and one for each metric."""
        k = pa.array(self._k, pa.int32())
        columns = {"key": self._keys, "label": pa.array(self._labels, pa.int32()), "k": k, **self._values}
        return parquet_bytes(pa.table(columns))


class ImageSets:
    """Features of sets of images, as far as the metrics of `config` need them. ORIGINAL is the reference.

    Raises what `load_extractor` does: make it before any expensive work.
    """

    def __init__(self, config: SetComparisonConfig, device: str):
        self.metrics: list[SetMetric] = [SET_METRICS[name] for name in config.set_metrics]
        self.extractor = config.extractor
        self._sources: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        self._records: dict[str, dict[str, Any]] = {}
        for metric in self.metrics:
            if metric.features is not None:
                self._sources[metric.name] = metric.features
            elif self.extractor not in self._sources:
                extractor = load_extractor(self.extractor, config.extractor_input_px, device)
                self._sources[self.extractor], self._records[self.extractor] = extractor, extractor.record
        self._gathered: dict[tuple[int, str, str], FeatureStatistics | FeatureRows] = {}
        self._counts: Counter[int] = Counter()

    def add(self, k: int, images_BHWC: np.ndarray) -> None:
        """Take in uint8 images [B, H, W, 3] of the set `k`."""
        self._counts[k] += len(images_BHWC)
        for source, features_of in self._sources.items():
            features = features_of(images_BHWC)
            width = features.shape[1]
            self._records.setdefault(source, {"name": source, "width": width})
            for needs in sorted({metric.needs for metric in self.metrics if self._source(metric) == source}):
                empty = FeatureStatistics.empty(width) if needs == "statistics" else FeatureRows()
                self._gathered.setdefault((k, source, needs), empty).add(features)

    def compare(
        self, metric: SetMetric, k: int, protocol: dict[str, Any], reference: dict[str, Any], suffix: str = ""
    ) -> Metric:
        """The set `k` against the reference. `protocol` says how its images were made (`keep`: of how many tokens),
        `reference` which the originals are."""
        record = {
            **protocol,
            "distance": metric.protocol(self._records[self._source(metric)], self._counts[k], reference),
        }
        value = metric.compute(self._of(metric, ORIGINAL), self._of(metric, k))
        return Metric(metric.called(self.extractor) + suffix, value, record, protocol["keep"])

    def _source(self, metric: SetMetric) -> str:
        return self.extractor if metric.features is None else metric.name

    def _of(self, metric: SetMetric, k: int) -> FeatureStatistics | np.ndarray:
        gathered = self._gathered[k, self._source(metric), metric.needs]
        return gathered.stack() if isinstance(gathered, FeatureRows) else gathered
