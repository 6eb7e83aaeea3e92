"""Our numbers for anybody's pictures: a folder or `.npz` of them against a reference, by the one protocol."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from flextok.data.images import preprocess
from flextok.digests import digest_arrays, digest_of
from flextok.errors import FlextokError, UsageError
from flextok.evaluate.config import PicturesConfig
from flextok.evaluate.given import Arrays, Crop, Given, Looked, Unusable, file_format, open_given
from flextok.evaluate.grid import GIVEN, ORIGINAL
from flextok.evaluate.images import ImageBatch
from flextok.evaluate.measure import ImageSets, ImageTable, Measure, Measured, Pictures
from flextok.evaluate.pairs import Item, find_pairs, items, key_of, names_to_read
from flextok.evaluate.protocol import environment_record, evaluation_device
from flextok.evaluate.results import IMAGES, EvaluationResult, Metric, write_evaluation
from flextok.metrics.statistics import GivenStatistics
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.progress import Task, track
from flextok.runtime.spread import spread
from flextok.runtime.storage_errors import storage_errors

PICTURES, STATISTICS, SAME_NAMES = "given pictures", "given statistics", "given pictures of the same names"
TOLD = 5
"""Pictures of no use that a message names."""
logger = logging.getLogger(__name__)


@dataclass
class Entered:
    """What entered of one place: hashes of all pictures that were read, of those in the set, and the formats of files."""

    read: list[str] = field(default_factory=list)
    in_set: list[str] = field(default_factory=list)
    formats: set[str] = field(default_factory=set)

    def add(self, other: "Entered") -> None:
        """Take in what else entered."""
        self.read += other.read
        self.in_set += other.in_set
        self.formats |= other.formats


class Seen(NamedTuple):
    """What an item gives: to the numbers, to the records of what entered, and which pictures were of no use."""

    measured: list[Measured]
    entered: dict[int, Entered]
    unusable: list[Unusable]


@storage_errors("evaluate {images_url} against {reference_url} into {parent_url}")
def evaluate_pictures(
    images_url: str,
    reference_url: str,
    parent_url: str,
    config: PicturesConfig,
    size_px: int | None = None,
    in_pairs: bool | None = None,
    compute: ComputeConfig | None = None,
) -> EvaluationResult:
    """Measure pictures against a reference, both a folder or an `.npz`; stored in `parent_url/<digest>/`.

    Here or, where `compute` has the address of a cluster, by workers on its nodes.

    All are cropped to `size_px`; without it they must be squares of one size. Metrics: those of sets
    (`config.set_metrics`), for which the reference may be statistics alone, and with `in_pairs` those of images
    (`config.metrics`), of pictures in two folders whose names are equal but for their endings. `in_pairs=None`: where
    these are the names of all. File, with pairs: `images.parquet`. Raises UsageError where sizes, names, numbers or
    statistics do not fit, FlextokError naming pictures that cannot be read: a number is of all of them or there is none.
    """
    config = config.part(PicturesConfig)
    device = evaluation_device(compute)
    sets, table = ImageSets(config, evaluation_device()), ImageTable(config.metrics, config.weights)
    images, reference = open_given(images_url), open_given(reference_url)
    statistics = _give_statistics(sets, reference)
    of_pictures = [each.name for each in sets.metrics if each.uses_reference and each.name not in statistics]
    pairs = find_pairs(images, reference, in_pairs)
    names = names_to_read(images, reference if of_pictures else None, pairs, config.distance_images)
    sets.require(len(names[GIVEN]), images.url)
    sets.require(len(names[ORIGINAL]), reference.url, of_pictures)
    for place, chosen in ((images, names[GIVEN]), (reference, names[ORIGINAL])):
        if 0 < len(chosen) < len(place.names):
            counts = len(chosen), len(place.names)
            logger.info("%d of %d pictures enter their set (evaluation.distance_images): %s", *counts, place.url)
    crop = _crop(size_px, images)
    if pairs:
        table.require(crop.size_px)

    in_sets = {k: frozenset(chosen) for k, chosen in names.items()}
    total = 2 * len(pairs) or sum(map(len, names.values()))
    with (
        track("measure", total, "pictures") as task,
        spread("a measuring worker", PictureMeasurer, (config, crop, in_sets, bool(pairs), device), compute) as measure,
    ):
        seen = measure(items(images, reference, pairs, names))
        entered = _gather(seen, sets, table, [*images.unusable, *reference.unusable], task)
    protocol = {
        "pictures": _record(entered[GIVEN].read),
        "preprocess": preprocess(crop.size_px),
        "file_format": file_format(entered[GIVEN].formats),
        "environment": environment_record(device),
    }
    metrics = list(_pair_numbers(table, entered[ORIGINAL], protocol)) if pairs else []
    pictures = {"kind": PICTURES, **_reference_record(entered[ORIGINAL], entered[ORIGINAL].in_set)}
    metrics += [
        sets.compare(metric, GIVEN, protocol, statistics.get(metric.name, pictures), in_pairs=bool(pairs))
        for metric in sets.metrics
    ]
    inputs = [
        *_input(images, [protocol["pictures"]]),
        *_input(reference, [*statistics.values(), _record(entered[ORIGINAL].read)]),
    ]
    recipe = {**config.content(), "size": crop.size_px, "pairs": bool(pairs)}
    files = {IMAGES: table.to_parquet()} if pairs else {}
    return write_evaluation("pictures", parent_url, metrics, [], [], recipe, files, inputs)


class PictureMeasurer:
    """What a worker holds to measure pictures of both places, of which those in `in_sets` enter their set."""

    def __init__(
        self, config: PicturesConfig, crop: Crop, in_sets: Mapping[int, frozenset[str]], in_pairs: bool, device: str
    ):
        self._measure = Measure(
            ImageSets(config, device), ImageTable(config.metrics, config.weights) if in_pairs else None
        )
        self._crop, self._in_sets = crop, in_sets

    def __call__(self, item: Item) -> Seen:
        """What some pictures give; nothing to the numbers where one of them is of no use."""
        parts = {item.k: item.part, **({ORIGINAL: item.originals} if item.originals else {})}
        looked = {k: part.look(self._crop) for k, part in parts.items()}
        unusable = [each for found in looked.values() for each in found if isinstance(each, Unusable)]
        usable = {k: [each for each in found if isinstance(each, Looked)] for k, found in looked.items()}
        measured = [] if unusable else [self._measure(pictures) for pictures in self._pictures(usable)]
        return Seen(measured, {k: self._entered(k, found) for k, found in usable.items()}, unusable)

    def _pictures(self, looked: Mapping[int, list[Looked]]) -> Iterator[Pictures]:
        stacked = {k: np.stack([each.pixels_HWC for each in found]) for k, found in looked.items()}
        for k, images_BHWC in stacked.items():
            chosen_B = np.array([each.name in self._in_sets[k] for each in looked[k]])
            originals = None
            if k == GIVEN and ORIGINAL in stacked:
                keys = [key_of(each.name) for each in looked[k]]
                originals = ImageBatch(keys, [None] * len(keys), stacked[ORIGINAL])
            yield Pictures(k, images_BHWC, originals, chosen_B)

    def _entered(self, k: int, looked: Sequence[Looked]) -> Entered:
        hashes = {each.name: each.sha256 for each in looked}
        in_set = [sha256 for name, sha256 in hashes.items() if name in self._in_sets[k]]
        return Entered(list(hashes.values()), in_set, {each.format for each in looked})


def _give_statistics(sets: ImageSets, reference: Given) -> dict[str, dict[str, Any]]:
    """Give `sets` the statistics that the reference has; their record, by the metric that takes them."""
    if not isinstance(reference, Arrays):
        return {}
    records = {}
    for metric in (metric for metric in sets.metrics if metric.uses_reference):
        found = reference.file.statistics(*metric.given) if metric.given else None
        if found is not None:
            sets.give(metric, GivenStatistics(*found))
            digest = digest_arrays(dict(zip(("mean", "covariance"), found, strict=True)), {})
            records[metric.name] = {"kind": STATISTICS, "arrays": list(metric.given or ()), "digest": digest}
        elif not reference.names:
            needed = f"arr_0 or {' and '.join(metric.given)}" if metric.given else "pictures (arr_0)"
            raise UsageError(
                f"expected {needed} in {reference.url} for {metric.name}, found {', '.join(reference.file.arrays)}; take "
                f"another reference, or leave {metric.name} out of evaluation.set_metrics"
            )
    return records


def _crop(size_px: int | None, images: Given) -> Crop:
    if size_px is not None:
        return Crop(size_px)
    width, height = images.first_size()
    if width != height:
        raise UsageError(
            f"expected square pictures in {images.url}, found {width}x{height}; say with --size to which size all are to "
            "be cropped"
        )
    return Crop(width, images.url)


def _gather(
    seen: Iterable[Seen], sets: ImageSets, table: ImageTable, unusable: list[Unusable], task: Task
) -> dict[int, Entered]:
    """Take all of `seen` into `sets` and `table`; raises FlextokError naming pictures that were of no use."""
    entered = {GIVEN: Entered(), ORIGINAL: Entered()}
    for each in seen:
        unusable += each.unusable
        for measured in each.measured:
            sets.add(measured)
            table.add(measured)
        for k, found in each.entered.items():
            entered[k].add(found)
            task.advance(len(found.read))
    if unusable:
        told = "; ".join(f"{each.name}: {each.why}" for each in unusable[:TOLD])
        raise FlextokError(
            f"expected pictures that can be read, found {len(unusable):,} that cannot: {told}; restore or remove them"
        )
    return entered


def _record(hashes: Sequence[str]) -> dict[str, Any]:
    """Which pictures: a digest of their pixels after the crop, whatever their names, and their number; {} for none."""
    return {"digest": digest_of(sorted(hashes)), "images": len(hashes)} if hashes else {}


def _reference_record(entered: Entered, hashes: Sequence[str]) -> dict[str, Any]:
    return {**_record(hashes), "file_format": file_format(entered.formats)}


def _input(given: Given, records: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Pictures or statistics as an input for the provenance, by what was read of them; none where nothing was."""
    digests = [record["digest"] for record in records if record]
    if not digests:
        return []
    digest = digests[0] if len(digests) == 1 else digest_of(digests)
    return [{"kind": given.kind, "digest": digest, "uri": given.url}]


def _pair_numbers(table: ImageTable, originals: Entered, protocol: dict[str, Any]) -> Iterator[Metric]:
    record = {"kind": SAME_NAMES, **_reference_record(originals, originals.read)}
    for metric in table.metrics:
        yield table.mean(metric, GIVEN, {**protocol, "reference": record})
