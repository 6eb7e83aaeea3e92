"""Weights that a metric is given by a path: looked at only where their hash is the one that was named."""

from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import Field

from flextok.config import Config, Operational
from flextok.errors import UsageError
from flextok.metrics.base import ImageMetric, SampleMetric
from flextok.weights import check_weights


class WeightsConfig(Config):
    """Where the weights of a metric lie, and which they are."""

    metric: str = Field(description="Metric that they are for.")
    path: Operational[str] = Field(
        description="A .safetensors file, or the folder that transformers reads, as it says."
    )
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the .safetensors file, as `sha256sum` gives it.")

    def check(self, file: str) -> None:
        """Raises UsageError unless `file` is there and has the hash."""
        check_weights(file, self.sha256, self.metric, "see docs/metrics.md")


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
