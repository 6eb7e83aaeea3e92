"""Metrics of pictures as they go by: each against its original, and whole sets against the set of originals."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flextok.errors import FlextokError, UsageError
from flextok.evaluate.config import SetComparisonConfig
from flextok.evaluate.features import load_extractor
from flextok.evaluate.gathered import Gathered, Kept
from flextok.evaluate.grid import ORIGINAL, parquet_bytes
from flextok.evaluate.images import ImageBatch
from flextok.evaluate.results import Metric, standard_error
from flextok.metrics.base import IMAGE_METRICS, SET_METRICS, ImageMetric, Layer, SetMetric
from flextok.metrics.bootstrap import bootstrap
from flextok.metrics.statistics import GivenStatistics
from flextok.metrics.weights import WeightsConfig, with_weights


@dataclass(frozen=True)
class Pictures:
    """A batch of pictures uint8 [B, H, W, 3] of the set `k`: a number of tokens, or a name such as ORIGINAL."""

    k: int
    images_BHWC: np.ndarray
    originals: ImageBatch | None = None
    """What each picture is compared with; None: it only enters its set."""
    in_sets_B: np.ndarray | None = None
    """Which of them enter their set, bool; None: all."""


@dataclass(frozen=True)
class Measured:
    """What a batch of pictures gives to the numbers about the set `k`; small beside the pictures."""

    k: int
    keys: list[str]
    labels: list[int | None]
    values: dict[str, list[float]]
    """By metric, of each picture that was compared with its original, whose `keys` and `labels` these are."""
    in_sets: int
    """Pictures that entered their set."""
    features: dict[str, np.ndarray]
    """Of those, float64 [B, width], by what gave them."""

    def to_plain(self) -> dict[str, Any]:
        """As a part of an evaluation has it; `Measured(**plain)` is the inverse."""
        return vars(self)


class Measure:
    """Measures batches of pictures, in any worker."""

    def __init__(self, sets: "ImageSets", table: "ImageTable | None" = None):
        self._sets, self._table = sets, table

    def __call__(self, pictures: Pictures) -> Measured:
        """What the batch gives."""
        compared = pictures.originals if self._table is not None else None
        chosen = pictures.images_BHWC
        if pictures.in_sets_B is not None:
            chosen = chosen[pictures.in_sets_B]
        return Measured(
            pictures.k,
            compared.keys if compared else [],
            compared.labels if compared else [],
            self._table.measure(pictures.images_BHWC, compared) if self._table is not None and compared else {},
            len(chosen),
            self._sets.features(chosen) if len(chosen) else {},
        )


class ImageTable:
    """The metrics `names` of every image in every set, in long form; `weights` are for those that need some.

    Raises what `with_weights` does: make it before any expensive work.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[WeightsConfig] = ()):
        self.metrics: list[ImageMetric] = [with_weights(IMAGE_METRICS[name], weights) for name in names]
        self._keys: list[str] = []
        self._labels: list[int | None] = []
        self._k: list[int] = []
        self._values: dict[str, list[float]] = {name: [] for name in names}

    def require(self, image_px: int) -> None:
        """Raises UsageError where a metric has no number for images of this side."""
        for metric in self.metrics:
            metric.require(image_px)

    def measure(self, images_BHWC: np.ndarray, originals: ImageBatch) -> dict[str, list[float]]:
        """The metrics of each picture of a batch."""
        return {metric.name: metric(images_BHWC, originals.images_BHWC).tolist() for metric in self.metrics}

    def add(self, measured: Measured) -> None:
        """Take in a batch."""
        self._keys += measured.keys
        self._labels += measured.labels
        self._k += [measured.k] * len(measured.keys)
        for name, values in measured.values.items():
            self._values[name] += values

    def values(self, name: str, k: int) -> np.ndarray:
        """The metric `name` of the images in the set `k`, float64 [N]."""
        return np.array(self._values[name])[np.array(self._k) == k]

    def keys(self, k: int) -> list[str]:
        """The images of the set `k`, in the order of `values`."""
        return [key for key, of_set in zip(self._keys, self._k, strict=True) if of_set == k]

    def mean(self, metric: ImageMetric, k: int, protocol: dict[str, Any], prefix: str = "") -> Metric:
        """The mean over the images of the set `k`; `protocol` says how they were made."""
        values = self.values(metric.name, k)
        record = {**protocol, "definition": metric.definition, **metric.record()}
        keep = k if k > ORIGINAL else None
        return Metric(prefix + metric.name, float(values.mean()), record, keep, standard_error(values))

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
        self.extractor, self._resamples = config.extractor, config.bootstrap
        self._own = {metric.name: metric.features for metric in self.metrics if metric.features is not None}
        self._records: dict[str, dict[str, Any]] = {}
        self._network = None
        layers: list[Layer] = list(dict.fromkeys(metric.layer for metric in self.metrics if metric.features is None))
        if layers:
            self._network = load_extractor(
                self.extractor, config.extractor_input_px, device, layers, config.extractor_weights
            )
            self._records = {self._source_of(layer): record for layer, record in self._network.records.items()}
        self.kept: Kept = {source: self._kept_of(source) for source in (*self._own, *self._records)}
        self._gathered: dict[int, Gathered] = defaultdict(lambda: Gathered(self.kept))
        self._given: dict[str, GivenStatistics] = {}

    def require(self, images: int, place: str, names: Sequence[str] | None = None) -> None:
        """Raises UsageError where a metric (of `names`; None: any) has no number for so few `images`, those of `place`."""
        for metric in self.metrics:
            if images < metric.fewest and (names is None or metric.name in names):
                raise UsageError(
                    f"expected at least {metric.fewest} images for {metric.name}, found {images} in {place}; give more, or "
                    f"leave {metric.name} out of evaluation.set_metrics"
                )

    def give(self, metric: SetMetric, statistics: GivenStatistics) -> None:
        """Take `statistics` for the reference of `metric`, in place of images; raises UsageError where they do not fit."""
        source = self._source(metric)
        width = self._records[source]["width"]
        if statistics.width != width:
            raise UsageError(
                f"expected statistics of {width} features for {metric.name}, as {source} has them, found "
                f"{statistics.width}; name the extractor they were made with (evaluation.extractor)"
            )
        self._given[metric.name] = statistics

    def features(self, images_BHWC: np.ndarray) -> dict[str, np.ndarray]:
        """Those of uint8 images [B, H, W, 3], by what gives them."""
        found = {source: features_of(images_BHWC) for source, features_of in self._own.items()}
        if self._network is not None:
            found |= {self._source_of(layer): each for layer, each in self._network.outputs(images_BHWC).items()}
        for source, features in found.items():
            if not np.isfinite(features).all():
                raise FlextokError(
                    f"expected finite features by {source}, found NaN or infinity; look at the weights of the extractor"
                )
        return found

    @property
    def kept_of_reference(self) -> Kept:
        """What is kept of the reference: nothing of what only metrics without one take."""
        used = {self._source(metric) for metric in self.metrics if metric.uses_reference}
        return {source: kept for source, kept in self.kept.items() if source in used}

    def records(self) -> dict[str, dict[str, Any]]:
        """What gives the features, by source, as far as it is known without any."""
        return {source: self._records.get(source, {"name": source}) for source in self.kept}

    def add(self, measured: Measured) -> None:
        """Take in a batch."""
        self._gathered[measured.k].add(measured.in_sets, measured.features)

    def take(self, k: int, gathered: Gathered) -> None:
        """Take in what was gathered of the set `k` before, as `kept` says."""
        self._gathered[k].merge(gathered)

    def compare(
        self,
        metric: SetMetric,
        k: int,
        protocol: dict[str, Any],
        reference: dict[str, Any],
        suffix: str = "",
        in_pairs: bool = False,
    ) -> Metric:
        """The set `k` against the reference. `protocol` says how its images were made (`keep`: of how many tokens, where
        there are any), `reference` which the originals are; `in_pairs`: each image is made of the original in its place."""
        record = {
            **protocol,
            "distance": metric.protocol(self._record_of(metric, k), self._gathered[k].images, reference),
        }
        value = self.value(metric, k)
        name, keep = metric.called(self.extractor) + suffix, protocol.get("keep")
        if not self._resamples:
            return Metric(name, value, record, keep)
        rows = self._reference_of(metric, "features"), self._of(metric, k, "features")
        interval = bootstrap(metric, *rows, value, self._resamples, in_pairs)
        return Metric(name, value, record, keep, interval.standard_error, interval.to_json())

    def value(self, metric: SetMetric, k: int) -> float:
        """The number alone, of the set `k` against the reference."""
        return metric.compute(self._reference_of(metric, metric.needs), self._of(metric, k, metric.needs))

    def of(self, metric: SetMetric, gathered: Gathered) -> Any:
        """What `metric` works on, of a set that was gathered elsewhere."""
        return gathered.of(self._source(metric), metric.needs)

    def _source(self, metric: SetMetric) -> str:
        return self._source_of(metric.layer) if metric.features is None else metric.name

    def _source_of(self, layer: Layer) -> str:
        return self.extractor if layer == "features" else f"{self.extractor} {layer}"

    def _kept_of(self, source: str) -> frozenset[str]:
        """What its metrics work on, and the features themselves where they are resampled."""
        kept: set[str] = {metric.needs for metric in self.metrics if self._source(metric) == source}
        return frozenset(kept | {"features"} if self._resamples else kept)

    def _record_of(self, metric: SetMetric, k: int) -> dict[str, Any]:
        source = self._source(metric)
        return self._records.get(source) or {"name": source, "width": self._gathered[k].widths()[source]}

    def _reference_of(self, metric: SetMetric, kept: str) -> Any:
        given = self._given.get(metric.name)
        return None if not metric.uses_reference else given or self._of(metric, ORIGINAL, kept)

    def _of(self, metric: SetMetric, k: int, kept: str) -> Any:
        return self._gathered[k].of(self._source(metric), kept)
