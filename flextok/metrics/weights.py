"""Weights that a metric is given by a path: looked at only where their hash is the one that was named."""

from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import Field

from flextok import storage
from flextok.config import Config, Operational
from flextok.errors import UsageError
from flextok.metrics.base import ImageMetric, SampleMetric


class WeightsConfig(Config):
    """Where the weights of a metric lie, and which they are."""

    metric: str = Field(description="Metric that they are for.")
    path: Operational[str] = Field(
        description="A .safetensors file, or the folder that transformers reads, as it says."
    )
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the .safetensors file, as `sha256sum` gives it.")

    def check(self, file: str) -> None:
        """Raises UsageError unless `file` is there and has the hash."""
        if not storage.exists(file):
            raise UsageError(f"expected the weights of {self.metric} at {file}, found nothing; see docs/metrics.md")
        found = storage.sha256_file(file)
        if found != self.sha256:
            raise UsageError(f"expected weights of {self.metric} with sha256 {self.sha256}, found {found} at {file}")


def without_weights(*_: Any) -> NoReturn:
    """What a metric computes before it was given its weights."""
    raise UsageError("expected weights for this metric, found none; see docs/metrics.md")


MetricT = TypeVar("MetricT", ImageMetric, SampleMetric)


def with_weights(metric: MetricT, weights: Sequence[WeightsConfig]) -> MetricT:
    """`metric` with those of `weights` that are for it; raises UsageError where they are lacking, not there or others than
    named."""
    if metric.of_weights is None:
        return metric
    given = [each for each in weights if each.metric == metric.name]
    if not given:
        raise UsageError(f"expected weights for {metric.name}, found none; see docs/metrics.md")
    return metric.of_weights(given[0])
