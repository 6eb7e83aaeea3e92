"""Samples at the points of a grid: drawn at each temperature, decoded with each setting."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from flextok.data.tokens import TokenStore
from flextok.evaluate.config import GenerationConfig, SamplesConfig, SamplingConfig
from flextok.evaluate.decoding import decode_ids
from flextok.evaluate.measure import Pictures
from flextok.evaluate.samples.condition import Condition
from flextok.evaluate.samples.drawing import Sampler
from flextok.evaluate.sampling import open_samples
from flextok.evaluate.sweep import Point
from flextok.model.sampling.config import DrawConfig
from flextok.model.tokenizer import Tokenizer
from flextok.provenance import read_provenance, resolve_input


class Drawn(NamedTuple):
    """Some samples by their places, drawn at a temperature; None: as they are stored."""

    temperature: float | None
    rows: range


class SweptSamples:
    """What a worker holds to make the pictures of samples at `points`."""

    def __init__(
        self, samples_url: str, store: TokenStore, points: Sequence[Point], config: GenerationConfig, device: str
    ):
        self._samples_url, self._store, self._points = samples_url, store, points
        self._config, self._device = config, device
        self._keys = store.keys()
        self._sampler: tuple[float, Sampler] | None = None

    def pictures(self, tokenizer: Tokenizer, drawn: Drawn) -> Iterator[Pictures]:
        """Those of some samples at all points of their temperature, whose ids are drawn once."""
        ids = torch.from_numpy(self._ids(drawn))
        keys = self._keys[drawn.rows.start : drawn.rows.stop]
        for point in self._points:
            if point.temperature == drawn.temperature:
                images = decode_ids(tokenizer, ids, point.keep, keys, point.sampler(self._config))
                yield Pictures(point.set_id, images)

    def _ids(self, drawn: Drawn) -> np.ndarray:
        rows = slice(drawn.rows.start, drawn.rows.stop)
        if drawn.temperature is None:
            return self._store.ids()[rows].astype(np.int64)
        if self._sampler is None or self._sampler[0] != drawn.temperature:
            self._sampler = drawn.temperature, self._sampler_at(drawn.temperature)
        return self._sampler[1](drawn.rows)

    def _sampler_at(self, temperature: float) -> Sampler:
        """Draws as the stored samples were, but for the temperature, which is that of all positions."""
        _, recipe = open_samples(self._samples_url)
        law = {name: value for name, value in recipe["sampler"].items() if name in DrawConfig.model_fields}
        law |= {"guidance": recipe["sampler"]["prior_guidance"], "temperature": temperature, "last_temperature": None}
        config = SamplingConfig(seed=recipe["sampler"]["seed"], samples=SamplesConfig.model_validate(law))
        labels = [None if label < 0 else label for label in self._store.labels().tolist()]
        condition = Condition(recipe["sampler"]["labels"], labels, self._store.texts())
        return Sampler(prior_of(self._samples_url), condition, config, self._device)


def prior_of(samples_url: str) -> str:
    """Where the prior lies that the samples were drawn from."""
    inputs = read_provenance(samples_url)["inputs"]
    return resolve_input(next(item["uri"] for item in inputs if item["kind"] == "prior"), samples_url)
