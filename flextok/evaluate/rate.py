"""Rate and distortion: what codecs of pictures give back from as many bytes as tokens take, beside what tokens give."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flextok.data.codecs import CODECS, Compressed
from flextok.errors import UsageError
from flextok.evaluate.measure import ImageTable
from flextok.evaluate.results import Metric, Series, standard_error
from flextok.metrics.base import ImageMetric
from flextok.model.tokenizer import Tokenizer

DOUBLINGS = 8
"""Sizes beyond that of all tokens at which codecs are measured: most need more bytes than a tokenizer's fewest."""
BY_BYTES = "_by_bytes"
"""Ends the names of curves over bytes: `<codec>_<metric>_by_bytes`, and `tokens_<metric>_by_bytes` beside them."""
TOKENS = "tokens"
RULE = (
    "file of at most so many bytes, headers included: quality by bisection, of the picture and its halvings the one with the "
    "least squared error, where every image has such a file"
)

Rated = dict[tuple[str, int, str], list[float]]
"""Of each image, by codec, bytes and metric; NaN where it has no file so small."""


def token_bytes(tokenizer: Tokenizer, keep: int) -> int:
    """Bytes of `keep` tokens of an image, log2(vocabulary) bits each; raises UsageError where tokens are no ids."""
    if not tokenizer.vocab_size:
        raise UsageError("expected a tokenizer with a vocabulary for evaluation.codecs, found one of continuous values")
    return math.ceil(keep * tokenizer.codebooks * math.log2(tokenizer.vocab_size) / 8)


class Rates:
    """`metrics` of images in each of `codecs`, at the bytes of each number of tokens and beyond.

    Raises UsageError where a codec cannot be written here.
    """

    def __init__(self, codecs: Sequence[str], metrics: Sequence[ImageMetric], bytes_at: dict[int, int]):
        self._codecs = [CODECS[name] for name in codecs]
        for codec in self._codecs:
            codec.require()
        self._metrics = metrics
        self._bytes_at = bytes_at
        most = max(bytes_at.values())
        self._bytes = sorted({*bytes_at.values(), *(most * 2**doubling for doubling in range(1, DOUBLINGS + 1))})
        self._values: Rated = defaultdict(list)

    def measure(self, images_BHWC: np.ndarray) -> Rated:
        """What a batch of originals gives, in any worker."""
        rated: Rated = defaultdict(list)
        for codec in self._codecs:
            for image_HWC in images_BHWC:
                compressed = Compressed(codec, image_HWC)
                for size in self._bytes:
                    back = compressed.at_most(size)
                    for metric in self._metrics:
                        value = math.nan if back is None else float(metric(back[None], image_HWC[None])[0])
                        rated[codec.name, size, metric.name].append(value)
        return rated

    def add(self, rated: Rated) -> None:
        """Take in a batch."""
        for place, values in rated.items():
            self._values[place] += values

    def numbers(self, protocol: dict[str, Any]) -> Iterator[Metric]:
        """`<codec>_<metric>` at each K at whose bytes every image has a file; `protocol` says which images."""
        for codec in self._codecs:
            for metric in self._metrics:
                for keep, size in self._bytes_at.items():
                    values = np.array(self._values[codec.name, size, metric.name])
                    if np.isnan(values).any():
                        continue
                    record = {**protocol, **self._record(metric), "codec": {**codec.record(), "bytes": size}}
                    name = f"{codec.name}_{metric.name}"
                    yield Metric(name, float(values.mean()), record, keep, standard_error(values))

    def curves(self, table: ImageTable, protocol: dict[str, Any]) -> Iterator[Series]:
        """Means over bytes, of each codec where every image has a file so small, and of tokens as `table` has them."""
        for metric in self._metrics:
            record = {**protocol, **self._record(metric)}
            of_tokens = [float(table.values(metric.name, keep).mean()) for keep in self._bytes_at]
            yield Series(f"{TOKENS}_{metric.name}{BY_BYTES}", "bytes", list(self._bytes_at.values()), of_tokens, record)
            for codec in self._codecs:
                means = {size: np.mean(self._values[codec.name, size, metric.name]) for size in self._bytes}
                found = {size: float(mean) for size, mean in means.items() if not math.isnan(mean)}
                name, record_of_codec = f"{codec.name}_{metric.name}{BY_BYTES}", {**record, "codec": codec.record()}
                yield Series(name, "bytes", list(found), list(found.values()), record_of_codec)

    def _record(self, metric: ImageMetric) -> dict[str, Any]:
        return {"definition": f"{metric.definition}; {RULE}", **metric.record()}
