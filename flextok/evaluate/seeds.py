"""How far numbers hang on the noise that a decoder starts from: their spread over its seeds."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flextok.evaluate.config import DecodingConfig
from flextok.evaluate.measure import ImageSets, ImageTable
from flextok.evaluate.results import Metric, significant

SEED_SPREAD = "_seed_spread"
"""Ends the names of these numbers."""
DEFINITION = "standard deviation (n - 1) over seeds of the decoder's noise"
FIRST_SET = -1_000_000
"""The sets decoded from other seeds, in place of a number of tokens: this one, and on below it."""


class Seeded(NamedTuple):
    """A number of tokens decoded from another seed; `set_id` is its set's."""

    set_id: int
    keep: int
    seed: int

    def sampler(self, config: DecodingConfig) -> DecodingConfig:
        """The settings of its decoding."""
        return config.model_copy(update={"seed": self.seed})


def other_seeds(count: int, config: DecodingConfig, keeps: Sequence[int]) -> list[Seeded]:
    """Each of `keeps` from the `count` - 1 seeds that come after the evaluation's own."""
    found = [(keep, seed) for seed in range(config.seed + 1, config.seed + count) for keep in keeps]
    return [Seeded(FIRST_SET - index, *each) for index, each in enumerate(found)]


def seed_spreads(
    seeded: Sequence[Seeded], measured: Sequence[Metric], sets: ImageSets, table: ImageTable, seed: int
) -> Iterator[Metric]:
    """`<number>_seed_spread` by K of every metric: `measured` are the numbers from the evaluation's own `seed`, `sets` and
    `table` have the others."""
    own = {(each.name, each.k): each for each in measured}
    for keep in dict.fromkeys(each.keep for each in seeded):
        others = [each for each in seeded if each.keep == keep]
        seeds = [seed, *(each.seed for each in others)]
        for metric in table.metrics:
            values = [float(table.values(metric.name, each.set_id).mean()) for each in others]
            yield _spread(own[metric.name, keep], values, seeds)
        for metric in sets.metrics:
            values = [sets.value(metric, each.set_id) for each in others]
            yield _spread(own[metric.called(sets.extractor), keep], values, seeds)


def _spread(own: Metric, others: Sequence[float], seeds: Sequence[int]) -> Metric:
    values = [own.value, *others]
    over: dict[str, Any] = {
        "seeds": list(seeds),
        "values": [significant(value) for value in values],
        "mean": significant(float(np.mean(values))),
    }
    protocol = {**own.protocol, "definition": f"{DEFINITION}, of {own.name}", "spread": over}
    return Metric(own.name + SEED_SPREAD, float(np.std(values, ddof=1)), protocol, own.k)
