"""Numbers of the parts of a corpus: by the source of its images, or by what a field of their metadata says."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flextok.data.corpus.reader import Corpus
from flextok.errors import UsageError
from flextok.evaluate.results import Metric, Series, standard_error

SLICE = "slice"
"""In the protocol of a number of a part: which, and of what number."""
SOURCE = "source"
"""Slices by the name of the source, in a corpus of several."""
MOST_VALUES = 32
BY = "_by_"
Value = str | int | float | bool


class Slices:
    """The images of each value of each of `columns`, from the samples' JSON by key.

    Raises UsageError for a column that no image has, or whose values are too many or no single ones.
    """

    def __init__(self, columns: Sequence[str], documents: Mapping[str, Mapping[str, Any]], corpus: Corpus):
        self._values: dict[str, dict[str, Value]] = {}
        for column in columns:
            found = {key: _value(column, document, corpus) for key, document in documents.items()}
            self._values[column] = {key: value for key, value in found.items() if value is not None}
            self._require(column, documents)

    def numbers(self, whole: Metric, keys: Sequence[str], values: np.ndarray) -> Iterator[Metric]:
        """`<name>_<column>_<value>` beside `whole`, which is the mean of the `values` [N] of the images `keys`."""
        for column, by_key in self._values.items():
            known = {by_key[key] for key in keys if key in by_key}
            for value in sorted(known, key=lambda each: (isinstance(each, str), each)):
                part = values[np.array([by_key.get(key) == value for key in keys])]
                about = {"by": column, "value": value, "images": len(part)}
                error = standard_error(part) if len(part) > 1 else None
                name = f"{whole.name}_{column}_{_as_name(value)}"
                record = {**whole.protocol, SLICE: {**about, "of": whole.name}}
                yield Metric(name, float(part.mean()), record, whole.k, error)

    def _require(self, column: str, documents: Mapping[str, Mapping[str, Any]]) -> None:
        values = set(self._values[column].values())
        if not values:
            fields = sorted({name for document in documents.values() for name in document.get("metadata", {})})
            raise UsageError(
                f"expected evaluation.slices among {', '.join([SOURCE, *fields])}, found {column}, which no image has"
            )
        if len(values) > MOST_VALUES:
            raise UsageError(
                f"expected at most {MOST_VALUES} values of {column} for evaluation.slices, found {len(values)}; name a field "
                "that sorts images into few kinds"
            )


def curves_by_slice(numbers: Sequence[Metric]) -> Iterator[Series]:
    """`<name>_by_<column>` of sliced numbers, over the values of each column whose values are numbers, one for each K."""
    curves: dict[tuple[Any, ...], list[Metric]] = {}
    for number in numbers:
        about = number.protocol[SLICE]
        curves.setdefault((about["of"], about["by"], number.k), []).append(number)
    for (name, column, _), parts in curves.items():
        at = [part.protocol[SLICE]["value"] for part in parts]
        if any(isinstance(value, str | bool) for value in at):
            continue
        images = [part.protocol[SLICE]["images"] for part in parts]
        record = {**parts[0].protocol, SLICE: {"by": column, "of": name, "images": images}}
        yield Series(f"{name}{BY}{column}", column, at, [part.value for part in parts], record)


def _value(column: str, document: Mapping[str, Any], corpus: Corpus) -> Value | None:
    if column == SOURCE:
        names = [source["name"] for source in corpus.manifest["sources"]]
        return names[0] if len(names) == 1 else str(document["source"]).partition("/")[0]
    value = document.get("metadata", {}).get(column)
    if value is not None and not isinstance(value, Value):
        raise UsageError(
            f"expected a text or number as {column} of each image for evaluation.slices, found {type(value).__name__}; name "
            "another field"
        )
    return value


def _as_name(value: Value) -> str:
    """As a part of a number's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", f"{value:g}" if isinstance(value, float) else str(value)).strip("_") or "_"
