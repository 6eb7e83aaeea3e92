"""What a worker makes of originals: their reconstructions at each number of tokens, measured."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from flextok.data.images import to_model
from flextok.evaluate.config import ReconstructionConfig
from flextok.evaluate.contents import Contents, Recognised
from flextok.evaluate.decoding import decode_ids, pixels
from flextok.evaluate.extremes import Ranked, ends_of
from flextok.evaluate.grid import LATENTS, ORIGINAL, Shown, shown
from flextok.evaluate.images import ImageBatch
from flextok.evaluate.measure import ImageSets, ImageTable, Measure, Measured, Pictures
from flextok.evaluate.perturbation import FIRST_SET as FIRST_EXCHANGED
from flextok.evaluate.perturbation import Perturber, grid_of
from flextok.evaluate.rate import Rated, Rates
from flextok.evaluate.regions import Regions
from flextok.evaluate.seeds import Seeded
from flextok.evaluate.sweep import Point
from flextok.model.load import load_tokenizer
from flextok.model.tokenizer import Tokenizer


class Reconstructed(NamedTuple):
    """What a batch of originals gives: of each set what it gives to the numbers, and pictures for the grid; then the best and
    worst at the most tokens, what codecs make of the originals, and what recognisers make of all."""

    sets: list[tuple[Measured, list[Shown]]]
    extremes: list[Ranked]
    rated: Rated
    recognised: list[Recognised]

    def to_plain(self) -> Any:
        """As a part of an evaluation has it."""
        sets = [[measured.to_plain(), pictures] for measured, pictures in self.sets]
        return [
            sets,
            [vars(each) for each in self.extremes],
            [[*place, values] for place, values in self.rated.items()],
            [list(each) for each in self.recognised],
        ]

    @classmethod
    def from_plain(cls, plain: Any) -> "Reconstructed":
        """What `to_plain` gave."""
        sets, extremes, rated, *recognised = plain  # of an earlier version without the last
        return cls(
            [(Measured(**measured), pictures) for measured, pictures in sets],
            [Ranked(**each) for each in extremes],
            {(codec, size, metric): values for codec, size, metric, values in rated},
            [Recognised(*each) for found in recognised for each in found],
        )


class Reconstructor:
    """What a worker holds to measure batches of originals at each of `keeps` tokens and of `points`, those of a sweep and
    those of other seeds."""

    def __init__(
        self,
        tokenizer_url: str,
        config: ReconstructionConfig,
        keeps: Sequence[int],
        points: Sequence[Point | Seeded],
        set_keys: frozenset[str],
        with_originals: bool,
        grid_keys: frozenset[str],
        bytes_at: dict[int, int],
        regions: Mapping[str, Regions],
        device: str,
        dtype: torch.dtype,
    ):
        self._tokenizer = load_tokenizer(tokenizer_url, device, dtype)
        self._table = ImageTable(config.metrics, config.weights)
        self._measure = Measure(ImageSets(config, device), self._table)
        self._rates = Rates(config.codecs, self._table.metrics, bytes_at) if config.codecs else None
        self._contents = Contents(config.recognisers, regions)
        exchanged = grid_of(config.perturbation)
        self._perturb = Perturber(self._tokenizer, exchanged, config.seed) if exchanged else None
        self._config, self._keeps, self._set_keys, self._grid_keys = config, keeps, set_keys, grid_keys
        self._points, self._with_originals = points, with_originals

    def __call__(self, batch: ImageBatch) -> Reconstructed:
        """The sets are the originals, their way through the latents alone, the pictures at each K, those of exchanged tokens,
        and those at the points: all from one encoding."""
        sets, extremes, recognised = [], [], []
        recognise = self._contents.of(batch)
        for made in self._reconstructions(batch):
            measured = self._measure(made)
            sets.append((measured, self._shown(made, batch)))
            if made.k in (ORIGINAL, LATENTS, *self._keeps):
                recognised += recognise(made.k, made.images_BHWC)
            if made.k == self._keeps[-1] and self._grid_keys:
                extremes = ends_of(self._table.metrics, measured, batch.images_BHWC, made.images_BHWC)
        rated = self._rates.measure(batch.images_BHWC) if self._rates is not None else {}
        return Reconstructed(sets, extremes, rated, recognised)

    def _shown(self, made: Pictures, batch: ImageBatch) -> list[Shown]:
        wanted = self._grid_keys if made.k > FIRST_EXCHANGED else ()  # nor those of a sweep, which are below these
        return shown(wanted, batch.keys, batch.labels, made.images_BHWC)

    def _reconstructions(self, batch: ImageBatch) -> Iterator[Pictures]:
        chosen_B = np.array([key in self._set_keys for key in batch.keys])
        ids, through_latents = _encode(self._tokenizer, batch)
        yield Pictures(ORIGINAL, batch.images_BHWC, None, chosen_B & self._with_originals)
        yield Pictures(LATENTS, through_latents, batch, np.zeros_like(chosen_B))
        for keep in self._keeps:
            images = decode_ids(self._tokenizer, ids, keep, batch.keys, self._config)
            yield Pictures(keep, images, batch, chosen_B)
        if self._perturb is not None:
            for k, exchanged in self._perturb(ids, batch.keys):
                images = decode_ids(self._tokenizer, exchanged, self._keeps[-1], batch.keys, self._config)
                yield Pictures(k, images, None, chosen_B)
        for point in self._points:
            images = decode_ids(self._tokenizer, ids, point.keep, batch.keys, point.sampler(self._config))
            yield Pictures(point.set_id, images, batch, chosen_B)


@torch.inference_mode()
def _encode(tokenizer: Tokenizer, batch: ImageBatch) -> tuple[torch.Tensor, np.ndarray]:
    """Token ids of a batch, and its images after the latents alone."""
    latents = tokenizer.encode_images(to_model(batch.images_BHWC).to(tokenizer.device))
    return tokenizer.encode_latents(latents), pixels(tokenizer.images_from_latents(latents), "its latents", batch.keys)
