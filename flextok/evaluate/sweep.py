"""A grid of settings of one evaluation: every point measured as the evaluation itself is, whole curves, and the best point.

Of reconstructions each image is encoded once, of samples the ids are drawn once for each temperature; all points are decoded
from these. Like those of the evaluation, its numbers are kept by batches, and resume.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flextok.errors import UsageError
from flextok.evaluate.config import DecodingConfig, SweepConfig, keep_counts
from flextok.evaluate.measure import ImageSets, ImageTable
from flextok.evaluate.protocol import decoder_record
from flextok.evaluate.results import Metric, Series
from flextok.metrics.base import IMAGE_METRICS, SET_METRICS
from flextok.model.tokenizer import Tokenizer

FIRST_SET = -1000
"""The sets of points in place of a number of tokens: this one, and on below it."""
BY = "_by_"
BEST = "best_"
AXES = ("guidance", "steps", "temperature", "keep")


class Point(NamedTuple):
    """One point of the grid; `set_id` is its set's. `temperature` is None where ids are as they are."""

    set_id: int
    keep: int
    guidance: float
    steps: int
    temperature: float | None

    def sampler(self, config: DecodingConfig) -> DecodingConfig:
        """The settings of its decoding."""
        return config.model_copy(update={"guidance": self.guidance, "steps": self.steps})


def grid_points(
    sweep: SweepConfig, config: DecodingConfig, keeps: Sequence[int], num_tokens: int, with_prior: bool
) -> list[Point]:
    """All points of the grid, by temperature; raises UsageError for more tokens than there are, or a temperature where no
    prior draws."""
    temperatures = sweep.temperature if with_prior else None
    values = itertools.product(
        temperatures or [None],
        sweep.guidance or [config.guidance],
        sweep.steps or [config.steps],
        keep_counts(sweep.keep, num_tokens) if sweep.keep else keeps,
    )
    return [
        Point(FIRST_SET - index, keep, guidance, steps, temperature)
        for index, (temperature, guidance, steps, keep) in enumerate(values)
    ]


class Sweep:
    """The numbers of `points`, once `sets` (and `table`, where images are compared with their originals) have them all."""

    def __init__(self, sweep: SweepConfig, points: Sequence[Point], sets: ImageSets, table: ImageTable | None):
        self.points, self._sets, self._table = points, sets, table
        of_images = [metric.name for metric in table.metrics] if table is not None else []
        self._select = sweep.select or sets.metrics[0].name
        measured = [*of_images, *(metric.name for metric in sets.metrics)]
        if self._select not in measured:
            raise UsageError(
                f"expected evaluation.sweep.select among the metrics that are measured ({', '.join(measured)}), found "
                f"{self._select}"
            )

    def results(
        self,
        protocol: Mapping[str, Any],
        reference: dict[str, Any],
        tokenizer: Tokenizer,
        config: DecodingConfig,
        dtype: str,
        suffix: str = "",
    ) -> tuple[list[Metric], list[Series]]:
        """`best_<number>` of the metric that selects, and `<number>_by_<axis>` of every metric, along the axis with most
        values, for all values of the others. `protocol` says how the pictures were made but for the point's own settings."""
        records = {point: _protocol(point, protocol, tokenizer, config, dtype) for point in self.points}
        numbers: dict[str, dict[Point, Metric]] = {}
        for metric in self._table.metrics if self._table is not None else []:
            table = self._table
            assert table is not None
            numbers[metric.name] = {point: table.mean(metric, point.set_id, records[point]) for point in self.points}
        for metric in self._sets.metrics:
            numbers[metric.name] = {
                point: self._sets.compare(
                    metric, point.set_id, records[point], reference, suffix, self._table is not None
                )
                for point in self.points
            }
        return [self._best(numbers[self._select])], list(self._curves(numbers))

    def _best(self, found: Mapping[Point, Metric]) -> Metric:
        quantity = (SET_METRICS if self._select in SET_METRICS.names() else IMAGE_METRICS)[self._select]
        choose = min if quantity.better == "lower" else max
        point = choose(found, key=lambda point: found[point].value)
        best = found[point]
        selection = {
            "rule": f"{'lowest' if quantity.better == 'lower' else 'highest'} {best.name} of {len(found)} points",
            "chosen_on": "the images that it is measured on, which flatters it: the whole curve is beside it",
            "points": len(found),
            "point": _settings(point),
        }
        return dataclasses.replace(
            best, name=BEST + best.name, k=None, protocol={**best.protocol, "selection": selection}
        )

    def _curves(self, numbers: Mapping[str, Mapping[Point, Metric]]) -> Iterator[Series]:
        values = {axis: list(dict.fromkeys(getattr(point, axis) for point in self.points)) for axis in AXES}
        axis = max(AXES, key=lambda name: len(values[name]))
        for found in numbers.values():
            curves: dict[tuple[Any, ...], list[Point]] = {}
            for point in self.points:
                others = tuple(getattr(point, name) for name in AXES if name != axis)
                curves.setdefault(others, []).append(point)
            for points in curves.values():
                along = sorted(points, key=lambda point: getattr(point, axis))
                first = found[along[0]]
                fixed = {name: value for name, value in _settings(along[0]).items() if name != axis}
                yield Series(
                    f"{first.name}{BY}{axis}",
                    axis,
                    [getattr(point, axis) for point in along],
                    [found[point].value for point in along],
                    {**first.protocol, "sweep": {"along": axis, "at": fixed, "small_sample": _is_small(first)}},
                )


def _protocol(
    point: Point, protocol: Mapping[str, Any], tokenizer: Tokenizer, config: DecodingConfig, dtype: str
) -> dict[str, Any]:
    record = {**protocol, "decoder": decoder_record(tokenizer, point.sampler(config), dtype), "keep": point.keep}
    if point.temperature is not None:
        law = {**record["sampler"], "temperature": point.temperature}
        law.pop("last_temperature", None)
        record["sampler"] = law
    return record


def _settings(point: Point) -> dict[str, Any]:
    """By axis, without what is not swept."""
    return {axis: value for axis in AXES if (value := getattr(point, axis)) is not None}


def _is_small(metric: Metric) -> bool:
    return metric.protocol.get("distance", {}).get("small_sample", False)
