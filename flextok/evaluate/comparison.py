"""Evaluations side by side: what differs between their numbers, where they were measured alike."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from flextok import storage
from flextok.errors import UsageError
from flextok.evaluate.grid import GIVEN, LATENTS
from flextok.evaluate.results import (
    IMAGES,
    METRICS,
    NORMAL_95,
    OF_LATENTS,
    EvaluationResult,
    Metric,
    read_evaluation,
    standard_error,
)

SUBJECT = ("tokenizer", "prior", "samples", "tokens", "checkpoint", "pictures")
"""Parts of a protocol that say what was measured rather than how. Only they may differ."""
MOST_SHOWN = 24
"""Characters of a field's content in a message."""


@dataclass(frozen=True)
class Difference:
    """A number minus that of the first evaluation."""

    value: float
    half_width: float | None
    """Of its 95 % interval, normal; None where nothing is known of the spread."""
    paired: bool
    """Whether the interval is that of the differences of single images, rather than of two means."""

    @property
    def is_clear(self) -> bool:
        """Whether its interval leaves zero out."""
        return self.half_width is not None and abs(self.value) > self.half_width


@dataclass(frozen=True)
class ComparedNumber:
    """One number of all evaluations, each list in their order."""

    name: str
    k: int | None
    values: list[float | None]
    """None where an evaluation lacks it."""
    intervals: list[tuple[float, float] | None] = field(default_factory=list)
    """Both ends of the 95 % interval of each, where its spread is known."""
    differences: list[Difference | None] = field(default_factory=list)
    """Of all but the first; None where one lacks it or protocols differ."""
    differing: list[list[str]] = field(default_factory=list)
    """The fields of the protocol that keep each from being subtracted, with both contents."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "k": self.k,
            "values": self.values,
            "intervals": self.intervals,
            "differences": [vars(each) if each else None for each in self.differences],
            "differing": self.differing,
        }


def compare_evaluations(urls: Sequence[str], may_differ: Sequence[str] = ()) -> list[ComparedNumber]:
    """All numbers that at least two of the evaluations in the folders `urls` have, in the first one's order.

    The first is subtracted from each other one where their protocols agree in everything but `SUBJECT` and what
    `may_differ` names: dotted fields, `decoder` for all of `decoder.*`. The interval is that of the differences of single
    images where both have stored them. Raises UsageError where nothing can be subtracted.
    """
    evaluations = [read_evaluation(url) for url in urls]
    numbers = [{(item["name"], item["k"]): Metric.from_json(item) for item in each.metrics} for each in evaluations]
    tables = [_Images(each) for each in evaluations]
    rows = []
    for name, k in dict.fromkeys(itertools.chain(*numbers)):
        found = [each.get((name, k)) for each in numbers]
        if sum(metric is not None for metric in found) < 2:
            continue
        values = [metric.value if metric else None for metric in found]
        row = ComparedNumber(name, k, values, [metric.ends if metric else None for metric in found])
        for metric, table in zip(found[1:], tables[1:], strict=True):
            fields, difference = [], None
            if found[0] is not None and metric is not None:
                fields = list(_differing(found[0], metric, may_differ))
                difference = None if fields else _difference(found[0], metric, tables[0], table)
            row.differences.append(difference)
            row.differing.append(fields)
        rows.append(row)
    if not any(itertools.chain(*(row.differences for row in rows))):
        raise UsageError(_nothing_to_subtract(rows))
    return rows


def _nothing_to_subtract(rows: Sequence[ComparedNumber]) -> str:
    fields = dict.fromkeys(text for row in rows for each in row.differing for text in each)
    if not fields:
        return "expected evaluations with numbers in common, found none; give several of one kind"
    return (
        f"expected numbers of one protocol, found that they differ in {', '.join(fields)}; measure them alike, or say what "
        "may differ (--may-differ FIELD)"
    )


def _differing(first: Metric, other: Metric, may_differ: Sequence[str]) -> Iterator[str]:
    mine, theirs = dict(_leaves(first.protocol)), dict(_leaves(other.protocol))
    for name in sorted(mine.keys() | theirs.keys()):
        allowed = any(name == each or name.startswith(f"{each}.") for each in (*SUBJECT, *may_differ))
        if not allowed and mine.get(name) != theirs.get(name):
            yield f"{name} ({_short(mine.get(name))}, {_short(theirs.get(name))})"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _leaves(protocol: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in protocol.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield before + name, value


def _difference(first: Metric, other: Metric, mine: "_Images", theirs: "_Images") -> Difference:
    change = other.value - first.value
    pairs = mine.minus_in(theirs, first.name, first.k)
    if pairs is not None:
        return Difference(change, NORMAL_95 * standard_error(pairs), paired=True)
    if first.standard_error is None or other.standard_error is None:
        return Difference(change, None, paired=False)
    return Difference(change, NORMAL_95 * math.hypot(first.standard_error, other.standard_error), paired=False)


class _Images:
    """The metrics of the single images of an evaluation, where it has stored them."""

    def __init__(self, evaluation: EvaluationResult):
        url = storage.join(evaluation.url, IMAGES)
        self._frame: pl.DataFrame | None = None
        if storage.exists(url):
            with storage.open_read(url) as file:
                frame = pl.from_arrow(pq.read_table(file))
            assert isinstance(frame, pl.DataFrame)
            self._frame = frame

    def minus_in(self, other: "_Images", name: str, k: int | None) -> np.ndarray | None:
        """Float64 [N]: what each image has in `other` minus what it has here; None where one of them does not say."""
        column, at = (name.removeprefix(OF_LATENTS), LATENTS) if name.startswith(OF_LATENTS) else (name, k or GIVEN)
        mine, theirs = self._column(column, at), other._column(column, at)
        if mine is None or theirs is None:
            return None
        both = mine.join(theirs, on="key", suffix="_other")
        if not len(both) == len(mine) == len(theirs) or len(both) < 2:
            return None
        return (both[f"{column}_other"] - both[column]).to_numpy()

    def _column(self, name: str, k: int) -> pl.DataFrame | None:
        if self._frame is None or name not in self._frame.columns:
            return None
        return self._frame.filter(pl.col("k") == k).select("key", pl.col(name).cast(pl.Float64))


def find_evaluation(text: str, evaluations_url: str) -> str:
    """The folder that `text` names: itself, or that of the one digest below `evaluations_url` which begins with it."""
    if storage.exists(storage.join(text, METRICS)):
        return text
    found = [name for name in storage.list_names(evaluations_url) if name.startswith(text)] if text.isalnum() else []
    if len(found) == 1:
        return storage.join(evaluations_url, found[0])
    several = f"{len(found)} of them" if found else "neither"
    raise UsageError(
        f"expected the folder of an evaluation or the beginning of a digest in {evaluations_url}, found {several} for {text}"
    )
