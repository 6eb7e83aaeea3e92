"""An evaluation as stored: numbers with their protocol, in `<parent>/<digest>/metrics.json`, written last."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flextok import storage
from flextok.digests import digest_of
from flextok.errors import FlextokError
from flextok.metrics.base import STATISTICS
from flextok.provenance import artifact_input, make_provenance, read_provenance

METRICS = "metrics.json"
IMAGES = "images.parquet"
"""The metrics of each image, beside it where they were measured."""
OF_LATENTS = "latents_"
"""Begins the names of numbers about latents that were decoded with no token involved."""
# Beyond these digits, sums of float32 depend on the order in which a machine's threads add.
SIGNIFICANT_DIGITS = 6


@dataclass(frozen=True)
class Metric:
    """A number with its protocol. `k` is the number of kept tokens where one applies."""

    name: str
    value: float
    protocol: dict[str, Any]
    k: int | None = None
    standard_error: float | None = None
    """Of a mean over images: their standard deviation / sqrt(N). Of a number of sets: that of its `interval`."""
    interval: dict[str, Any] | None = None
    """`{low, high, level, resamples, seed, resampled, method}` of a number of sets that was measured with `bootstrap`."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in metrics.json; raises FlextokError when it is not finite."""
        if not math.isfinite(self.value):
            raise FlextokError(
                f"expected a finite {self.name} at K={self.k}, found {self.value}; look at the model's training"
            )
        item = {"name": self.name, "value": significant(self.value), "k": self.k, "protocol": self.protocol}
        if self.standard_error is not None:
            item["standard_error"] = significant(self.standard_error)
        if self.interval is not None:
            ends = {end: significant(self.interval[end]) for end in ("low", "high")}
            item["interval"] = {**self.interval, **ends}
        return item

    @classmethod
    def from_json(cls, item: dict[str, Any]) -> "Metric":
        """The metric that `to_json` wrote."""
        uncertainty = item.get("standard_error"), item.get("interval")
        return cls(item["name"], item["value"], item["protocol"], item["k"], *uncertainty)


def standard_error(values: np.ndarray) -> float:
    """Of their mean: the standard deviation of `values` [N] / sqrt(N)."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def statistic(name: str, value: float, protocol: dict[str, Any], k: int | None = None) -> Metric:
    """A number of the register STATISTICS, whose definition enters the protocol."""
    return Metric(name, value, {"definition": STATISTICS[name].definition, **protocol}, k)


@dataclass(frozen=True)
class Series:
    """Numbers along one axis (token positions, training steps) at the places `at`, with their protocol."""

    name: str
    axis: str
    at: Sequence[float]
    values: Sequence[float]
    protocol: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        values = [significant(value) for value in self.values]
        return {"name": self.name, "axis": self.axis, "at": list(self.at), "values": values, "protocol": self.protocol}

    @classmethod
    def from_json(cls, item: dict[str, Any]) -> "Series":
        """The series that `to_json` wrote."""
        return cls(item["name"], item["axis"], item["at"], item["values"], item["protocol"])


@dataclass(frozen=True)
class EvaluationResult:
    """A stored evaluation; `metrics` and `series` as they stand in metrics.json."""

    url: str
    digest: str
    metrics: list[dict[str, Any]]
    series: list[dict[str, Any]]

    def value(self, name: str, k: int | None = None) -> float:
        """The number called `name`, at `k` tokens where it depends on them; raises KeyError."""
        for item in self.metrics:
            if item["name"] == name and item["k"] == k:
                return item["value"]
        raise KeyError(f"{name} at k={k}")

    def curve(self, name: str) -> dict[int, float]:
        """The numbers called `name` by K, ascending; empty when there are none."""
        found = {item["k"]: item["value"] for item in self.metrics if item["name"] == name and item["k"] is not None}
        return dict(sorted(found.items()))


def significant(value: float) -> float:
    """`value` with as many digits as are reproducible."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def write_evaluation(
    kind: str,
    parent_url: str,
    metrics: Sequence[Metric],
    series: Sequence[Series],
    input_urls: Sequence[str],
    recipe: Any,
    files: dict[str, bytes],
    given: Sequence[dict[str, str]] = (),
) -> EvaluationResult:
    """Store an evaluation under its digest, over numbers, protocols and recipe; `files` go beside metrics.json.

    `given`: inputs that are no artifacts, `{kind, digest, uri}`, the kind one of `provenance.GIVEN`.
    """
    content = {"metrics": [each.to_json() for each in metrics], "series": [each.to_json() for each in series]}
    digest = digest_of({"kind": kind, "recipe": recipe, **content})
    url = storage.join(parent_url, digest)
    for name, file in files.items():
        storage.write_bytes(storage.join(url, name), file)
    inputs = [*map(artifact_input, input_urls), *given]
    provenance = make_provenance(kind, digest, inputs, recipe, url)
    storage.write_json(storage.join(url, METRICS), {**content, "provenance": provenance})
    return EvaluationResult(url, digest, content["metrics"], content["series"])


def read_evaluation(url: str) -> EvaluationResult:
    """The evaluation stored in the folder `url`; raises UsageError when there is none."""
    digest = read_provenance(url)["digest"]
    content = storage.read_json(storage.join(url, METRICS))
    return EvaluationResult(url, digest, content["metrics"], content["series"])


def verify_evaluation(url: str) -> list[str]:
    """What is wrong with the evaluation in the folder `url`: nothing when its numbers still have the recorded digest."""
    document = storage.read_json(storage.join(url, METRICS))
    block = document["provenance"]
    content = {"metrics": document["metrics"], "series": document.get("series", [])}
    found = digest_of({"kind": block["kind"], "recipe": block["recipe"], **content})
    return [] if found == block["digest"] else [f"numbers with digest {found[:12]}, recorded is {block['digest'][:12]}"]
