"""What recognisers make of the words and faces of images, of their reconstructions at each K and, of words, of the originals."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from flextok.errors import UsageError
from flextok.evaluate.grid import LATENTS, ORIGINAL, parquet_bytes
from flextok.evaluate.images import ImageBatch
from flextok.evaluate.regions import FIELDS, RULE, Box, Regions, cut
from flextok.evaluate.results import OF_LATENTS, Metric, standard_error
from flextok.evaluate.slices import Slices
from flextok.metrics.base import CONTENT_METRICS, Content, ContentMetric
from flextok.metrics.recognisers.base import Recogniser, RecogniserConfig

CONTENTS = "contents.parquet"
"""The number of each image by each recogniser."""
OF_ORIGINALS = "_originals"


class Recognised(NamedTuple):
    """The numbers `values` called `name` of the images `keys` in the set `k`."""

    name: str
    k: int
    keys: list[str]
    values: list[float]


class _Member(NamedTuple):
    """A recogniser, and by their names the metrics of what it makes of images."""

    called: str
    content: Content
    recogniser: Recogniser
    metrics: dict[str, ContentMetric]

    @classmethod
    def of(cls, config: RecogniserConfig) -> "_Member":
        metrics = {f"{each.name}_{config.called}": each for each in CONTENT_METRICS if each.content == config.looks_for}
        return cls(config.called, config.looks_for, config.build(), metrics)

    def boxes(self, regions: Regions) -> list[Box]:
        """What it looks at."""
        return [box for _, box in regions.words] if self.content == "text" else regions.faces


class Contents:
    """The numbers of all recognisers, of the images that have something for them in `regions`.

    Raises UsageError where a recogniser lacks what it needs, or no image has anything for it.
    """

    def __init__(self, configs: Sequence[RecogniserConfig], regions: Mapping[str, Regions]):
        self._regions = regions
        self._members = [_Member.of(config) for config in configs]
        self._found: dict[tuple[str, int], tuple[list[str], list[float]]] = defaultdict(lambda: ([], []))
        for member in self._members:
            if not any(map(member.boxes, regions.values())):
                raise UsageError(
                    f"expected images with {FIELDS[member.content]} in their metadata for the recogniser {member.called}, found "
                    "none; leave it out of evaluation.recognisers, or name another corpus"
                )

    def records(self) -> list[Mapping[str, Any]]:
        """What the recognisers are."""
        return [member.recogniser.record for member in self._members]

    def of(self, batch: ImageBatch) -> Callable[[int, np.ndarray], list[Recognised]]:
        """What the images that the set `k` has in place of the originals `batch` give, uint8 [B, H, W, 3], in any worker."""
        regions = [self._regions[key] for key in batch.keys] if self._members else []
        members = [(member, list(map(member.boxes, regions))) for member in self._members]
        members = [(member, boxes) for member, boxes in members if any(boxes)]
        truth = [
            [text for each in regions for text, _ in each.words]
            if member.content == "text"
            else member.recogniser(_crops(batch.images_BHWC, boxes))
            for member, boxes in members
        ]

        def recognise(k: int, images_BHWC: np.ndarray) -> list[Recognised]:
            return [
                number
                for (member, boxes), true in zip(members, truth, strict=True)
                if k != ORIGINAL or member.content == "text"  # a face is its own
                for number in _means(member, k, batch.keys, boxes, member.recogniser(_crops(images_BHWC, boxes)), true)
            ]

        return recognise

    def add(self, found: Sequence[Recognised]) -> None:
        """Take in a batch."""
        for name, k, keys, values in found:
            all_keys, all_values = self._found[name, k]
            all_keys += keys
            all_values += values

    def numbers(
        self, keeps: Sequence[int], protocol: dict[str, Any], decoded: dict[str, Any], slices: Slices
    ) -> Iterator[Metric]:
        """`<metric>_<recogniser>` by K, `latents_...` and, of words, `..._originals`, the ceiling; each in all and by slice.

        `protocol` says which images, `decoded` also how those of tokens were made.
        """
        for member in self._members:
            for name, metric in member.metrics.items():
                said = {
                    "metric": metric.name,
                    "definition": metric.definition,
                    "regions": RULE,
                    "recogniser": dict(member.recogniser.record),
                }
                places = [(f"{OF_LATENTS}{name}", LATENTS, protocol)]
                places += [(name, keep, {**decoded, "keep": keep}) for keep in keeps]
                if metric.content == "text":
                    places.append((f"{name}{OF_ORIGINALS}", ORIGINAL, protocol))
                for called, k, record in places:
                    keys, values = self._found[name, k][0], np.array(self._found[name, k][1])
                    error = standard_error(values) if len(values) > 1 else None
                    record = {**record, **said, "images": len(keys)}
                    number = Metric(called, float(values.mean()), record, k if k > ORIGINAL else None, error)
                    yield number
                    yield from slices.numbers(number, keys, values)

    def to_parquet(self) -> bytes:
        """Columns name, k, key, value."""
        rows = [
            (name, k, key, value) for (name, k), found in self._found.items() for key, value in zip(*found, strict=True)
        ]
        schema = pa.schema([("name", pa.string()), ("k", pa.int32()), ("key", pa.string()), ("value", pa.float64())])
        columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
        return parquet_bytes(
            pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)
        )


def _means(
    member: _Member, k: int, keys: Sequence[str], boxes: Sequence[Sequence[Box]], made: Any, true: Any
) -> Iterator[Recognised]:
    """The mean over the regions of each image that has any."""
    ends = np.cumsum([len(each) for each in boxes])[:-1]
    for name, metric in member.metrics.items():
        parts = np.split(metric.compute(made, true), ends)
        means = {key: float(part.mean()) for key, part in zip(keys, parts, strict=True) if len(part)}
        yield Recognised(name, k, list(means), list(means.values()))


def _crops(images_BHWC: np.ndarray, boxes: Sequence[Sequence[Any]]) -> list[np.ndarray]:
    return [cut(image, box) for image, each in zip(images_BHWC, boxes, strict=True) for box in each]
