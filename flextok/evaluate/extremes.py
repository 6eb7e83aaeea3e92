"""The best and the worst reconstructions by each metric, kept for people to look at."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.images import to_png
from flextok.evaluate.grid import parquet_bytes
from flextok.evaluate.measure import Measured
from flextok.metrics.base import ImageMetric

EXTREMES = "extremes.parquet"
EACH = 4
"""Pictures at either end of a metric."""


@dataclass(frozen=True)
class Ranked:
    """A reconstruction from `k` tokens that is among the best or the worst by `metric`; both pictures uint8 [H, W, 3]."""

    metric: str
    end: str
    """"best" or "worst"."""
    key: str
    label: int | None
    k: int
    value: float
    original: np.ndarray
    picture: np.ndarray


def ends_of(
    metrics: Sequence[ImageMetric], measured: Measured, originals_BHWC: np.ndarray, images_BHWC: np.ndarray
) -> list[Ranked]:
    """The `EACH` best and worst pictures of a batch by each metric that says which numbers are better."""
    found = []
    for metric in filter(lambda metric: metric.better, metrics):
        values = measured.values[metric.name]
        upwards = [row for _, _, row in sorted(zip(values, measured.keys, range(len(values)), strict=True))]
        best, worst = (upwards, upwards[::-1]) if metric.better == "lower" else (upwards[::-1], upwards)
        found += [
            Ranked(
                metric.name, end, measured.keys[row], measured.labels[row], measured.k, values[row],
                originals_BHWC[row], images_BHWC[row],
            )
            for end, rows in (("best", best), ("worst", worst))
            for row in rows[:EACH]
        ]  # fmt: skip
    return found


class Extremes:
    """Gathers the `EACH` best and worst of all batches: the same ones in whatever order these come."""

    def __init__(self, metrics: Sequence[ImageMetric]):
        self._lower_is_better = {metric.name: metric.better == "lower" for metric in metrics}
        self._kept: dict[tuple[str, str], list[Ranked]] = {}

    def add(self, found: Sequence[Ranked]) -> None:
        """Take in what `ends_of` gave of a batch."""
        for each in found:
            place = each.metric, each.end
            both = [*self._kept.get(place, []), each]
            lowest = self._lower_is_better[each.metric] == (each.end == "best")
            choose = heapq.nsmallest if lowest else heapq.nlargest
            self._kept[place] = choose(EACH, both, key=lambda ranked: (ranked.value, ranked.key))

    def to_parquet(self) -> bytes:
        """A table of metric, end, key, label, k, value, original, png; from the very end inwards."""
        rows = [each for kept in self._kept.values() for each in kept]
        columns = {
            "metric": pa.array([each.metric for each in rows], pa.string()),
            "end": pa.array([each.end for each in rows], pa.string()),
            "key": pa.array([each.key for each in rows], pa.string()),
            "label": pa.array([each.label for each in rows], pa.int32()),
            "k": pa.array([each.k for each in rows], pa.int32()),
            "value": pa.array([each.value for each in rows], pa.float64()),
            "original": pa.array([to_png(each.original) for each in rows], pa.binary()),
            "png": pa.array([to_png(each.picture) for each in rows], pa.binary()),
        }
        return parquet_bytes(pa.table(columns))


def read_extremes(url: str) -> list[dict]:
    """The rows of the table in the evaluation folder `url`; none of an evaluation that was made without it."""
    path = storage.join(url, EXTREMES)
    if not storage.exists(path):
        return []
    with storage.open_read(path) as file:
        return pq.read_table(file).to_pylist()
