"""Whether samples show what they were to show, at each number of tokens, beside held-out images as the ceiling."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.evaluate.config import GenerationConfig
from flextok.evaluate.grid import ORIGINAL
from flextok.evaluate.images import ImageBatch, stream_images
from flextok.evaluate.results import Metric, standard_error
from flextok.evaluate.sampling import SamplesResult, read_images
from flextok.metrics.base import SAMPLE_METRICS, SampleMetric
from flextok.metrics.weights import with_weights
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.progress import track
from flextok.runtime.spread import spread

Conditions = dict[str, list[str | None]]
"""What each image of a batch was to show: the name of its class, and its caption; None where there is none."""


class Part(NamedTuple):
    """Some images of a set: ORIGINAL, or samples at `k` tokens, which are read where they are measured."""

    k: int
    images: ImageBatch | Sequence[str]
    conditions: Conditions


def condition_numbers(
    samples: SamplesResult,
    corpus: Corpus,
    keys: Sequence[str],
    reference_keys: Sequence[str],
    config: GenerationConfig,
    image_px: int,
    drawn: dict[str, Any],
    held_out: dict[str, Any],
    compute: ComputeConfig | None,
) -> list[Metric]:
    """`<metric>_samples` of the samples `keys` by K, and `<metric>_originals` of the images `reference_keys` of `corpus`, for
    each of `config.sample_metrics`; `drawn` and `held_out` are their protocols.

    Raises UsageError where the samples, or the images, have no such conditions.
    """
    if not config.sample_metrics:
        return []
    parts = itertools.chain(
        _sampled(samples, keys, config.batch_size), _originals(corpus, reference_keys, image_px, config.batch_size)
    )
    values: dict[tuple[str, int], list[float]] = defaultdict(list)
    total = len(keys) * len(samples.keep) + len(reference_keys)
    with (
        track("look at samples", total, "images") as task,
        spread("a looking worker", ConditionMeasurer, (config, samples.url), compute) as measure,
    ):
        for k, found in measure(parts):
            for name, each in found.items():
                values[name, k] += each
            task.advance(len(next(iter(found.values()))))
    numbers = []
    for metric in _metrics(config):
        said = {"definition": metric.definition, **metric.record()}
        for keep in samples.keep:
            record = {**drawn, **said, "images": len(keys), "keep": keep}
            numbers.append(_mean(f"{metric.name}_samples", values[metric.name, keep], record, keep))
        record = {**held_out, **said, "images": len(reference_keys)}
        numbers.append(_mean(f"{metric.name}_originals", values[metric.name, ORIGINAL], record, None))
    return numbers


class ConditionMeasurer:
    """What a worker holds to look at images."""

    def __init__(self, config: GenerationConfig, samples_url: str):
        self._metrics, self._samples_url = _metrics(config), samples_url

    def __call__(self, part: Part) -> tuple[int, dict[str, list[float]]]:
        """The set, and by metric the numbers of its images."""
        if isinstance(part.images, ImageBatch):
            images = part.images.images_BHWC
        else:
            images = read_images(self._samples_url, part.k, part.images)
        found = {}
        for metric in self._metrics:
            conditions = [each for each in part.conditions[metric.condition] if each is not None]
            if len(conditions) < len(images):
                raise UsageError(
                    f"expected a {metric.condition} of each image for {metric.name}, found none of "
                    f"{len(images) - len(conditions)}; leave it out of evaluation.sample_metrics"
                )
            found[metric.name] = metric.compute(images, conditions).tolist()
        return part.k, found


def _metrics(config: GenerationConfig) -> list[SampleMetric]:
    return [with_weights(SAMPLE_METRICS[name], config.sample_weights) for name in config.sample_metrics]


def _mean(name: str, values: list[float], protocol: dict[str, Any], k: int | None) -> Metric:
    return Metric(name, float(np.mean(values)), protocol, k, standard_error(np.array(values)))


def _sampled(samples: SamplesResult, keys: Sequence[str], size: int) -> Iterator[Part]:
    """The samples at each K. Their text is the name of the class where they were drawn for one."""
    store = TokenStore.open(samples.url)
    texts, has_class = dict(zip(store.keys(), store.texts(), strict=True)), store.labels().min() >= 0
    for keep in samples.keep:
        for start in range(0, len(keys), size):
            part = keys[start : start + size]
            told = [texts[key] for key in part]
            yield Part(keep, part, {"class": told if has_class else [None] * len(part), "text": told})


def _originals(corpus: Corpus, keys: Sequence[str], image_px: int, size: int) -> Iterable[Part]:
    index, classes = corpus.index("key", "text"), corpus.classes or []
    texts = dict(zip(index["key"], index["text"], strict=True))
    for batch in stream_images(corpus, keys, image_px, size):
        names = [None if label is None or label >= len(classes) else classes[label] for label in batch.labels]
        captions = [texts[key] or name for key, name in zip(batch.keys, names, strict=True)]
        yield Part(ORIGINAL, batch, {"class": names, "text": captions})
