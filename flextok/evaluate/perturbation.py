"""Reconstructions from tokens some of which were exchanged for their neighbours: how robust a decoder is to a prior's errors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flextok.errors import UsageError
from flextok.evaluate.config import PerturbationConfig
from flextok.evaluate.measure import ImageSets
from flextok.evaluate.results import Metric, Series
from flextok.metrics.base import SET_METRICS
from flextok.metrics.perturbed import DEFINITION, curve_name, mean_name, perturbed_name
from flextok.model.rng import uniform_for
from flextok.model.tokenizer import Tokenizer

FIRST_SET = -100
"""In place of a number of tokens, the set of images of the grid's first point; those of the others are below."""
LARGEST_VOCABULARY = 2**20
"""Distances to each of more codes would take too long."""
CELLS = 2**24
"""Distances held at once."""
PLACES = 1e9
"""Squared distances are compared to so many parts of 1, so that the lattice of FSQ has ties on every machine."""


class Point(NamedTuple):
    """A point of the grid, and the set of its images."""

    k: int
    share: float
    rank: int


def grid_of(config: PerturbationConfig | None) -> list[Point]:
    """The points, ranks slowest; none without settings."""
    if config is None:
        return []
    points = [(share, rank) for rank in config.ranks for share in config.shares]
    return [Point(FIRST_SET - index, *point) for index, point in enumerate(points)]


def require_neighbours(tokenizer: Tokenizer, points: Sequence[Point]) -> None:
    """Raises UsageError where ids of `tokenizer` (an outline will do) have no such neighbours."""
    if not points:
        return
    most = max(point.rank for point in points)
    if tokenizer.codebooks != 1 or not tokenizer.vocab_size:
        kind = "continuous tokens" if not tokenizer.vocab_size else f"{tokenizer.codebooks} codebooks"
        raise UsageError(f"expected ids of one codebook for evaluation.perturbation, found {kind}; leave it out")
    if not most < tokenizer.vocab_size <= LARGEST_VOCABULARY:
        raise UsageError(
            f"expected evaluation.perturbation.ranks below the vocabulary, and that at most {LARGEST_VOCABULARY:,}, found "
            f"rank {most} and {tokenizer.vocab_size:,} ids"
        )


class Perturber:
    """Exchanges ids of `tokenizer` for neighbours. What an image gets depends on `seed` and its key alone.

    The draws are the same at each point of the grid: what is exchanged at a share is so at every larger one.
    """

    def __init__(self, tokenizer: Tokenizer, points: Sequence[Point], seed: int):
        self._points, self._seed = points, seed
        every = torch.arange(tokenizer.vocab_size, device=tokenizer.device)
        self._codes_Vd = tokenizer.quantizer.codes(every).double()

    @torch.inference_mode()
    def __call__(self, ids_BL: Tensor, keys: Sequence[str]) -> Iterator[tuple[int, Tensor]]:
        """The set of each point, and its ids [B, L]."""
        most = max(point.rank for point in self._points)
        distinct, places_BL = ids_BL.unique(return_inverse=True)
        near_BLR = neighbours(self._codes_Vd, distinct, most)[places_BL]
        names = [f"perturbed tokens {key}" for key in keys]
        draws = uniform_for(self._seed, names, (2, *ids_BL.shape[1:])).to(ids_BL.device)
        exchanged, chosen = draws.double().unbind(dim=1)
        for k, share, rank in self._points:
            picks = (chosen * rank).long().clamp(max=rank - 1)
            others = near_BLR.gather(-1, picks[..., None])[..., 0]
            yield k, torch.where(exchanged < share, others, ids_BL)


def neighbours(codes_Vd: Tensor, ids_N: Tensor, most: int) -> Tensor:
    """Ids [N, most] of the nearest other codes by Euclidean distance, the nearest first; of equally near ones the smaller
    id."""
    vocabulary = len(codes_Vd)
    every = torch.arange(vocabulary, device=codes_Vd.device)
    norms_V = codes_Vd.square().sum(dim=1)
    found = []
    for part in ids_N.split(max(1, CELLS // vocabulary)):
        squared = norms_V[part][:, None] + norms_V - 2 * codes_Vd[part] @ codes_Vd.T
        order = (squared * PLACES).round().clamp(min=0).long() * vocabulary + every
        order[torch.arange(len(part)), part] = -1
        found.append(order.topk(most + 1, largest=False, sorted=True).indices[:, 1:])
    return torch.cat(found)


@dataclass(frozen=True)
class Perturbed:
    """The numbers of a grid: the Fréchet distance that `sets` measure, at each of `points`."""

    sets: ImageSets
    points: Sequence[Point]
    seed: int

    def numbers(
        self, keep: int, measured: Sequence[Metric], protocol: dict[str, Any], reference: dict[str, Any]
    ) -> tuple[list[Metric], list[Series]]:
        """`pfd_<share>_<rank>_<extractor>` at `keep` tokens, the most there are, their mean, and for each rank the curve over
        shares, which begins with the distance of what is not perturbed, one of `measured`."""
        if not self.points:
            return [], []
        metric, extractor = SET_METRICS["frechet"], self.sets.extractor
        plain = next(each.value for each in measured if (each.name, each.k) == (metric.called(extractor), keep))
        record = {**protocol, "keep": keep, "definition": DEFINITION}
        found = {
            point: self.sets.compare(
                metric, point.k, {**record, "perturbation": self._record(point)}, reference, in_pairs=True
            )
            for point in self.points
        }
        named = [
            Metric(
                perturbed_name(share, rank, extractor),
                each.value,
                each.protocol,
                keep,
                each.standard_error,
                each.interval,
            )
            for (_, share, rank), each in found.items()
        ]
        grid = {"shares": self._shares(), "ranks": self._ranks(), **self._how()}
        mean = {**record, "definition": f"mean over the grid of: {DEFINITION}", "perturbation": grid}
        values = [each.value for each in named]
        numbers = [*named, Metric(mean_name(extractor), float(np.mean(values)), mean, keep)]
        curves = [
            Series(
                curve_name(rank, extractor),
                "share of tokens exchanged",
                [0, *self._shares()],
                [plain, *(each.value for point, each in found.items() if point.rank == rank)],
                {**record, "perturbation": {"rank": rank, **self._how()}},
            )
            for rank in self._ranks()
        ]
        return numbers, curves

    def _record(self, point: Point) -> dict[str, Any]:
        return {"share": point.share, "rank": point.rank, **self._how()}

    def _how(self) -> dict[str, Any]:
        return {"nearest": "Euclidean distance of codes, ties by id, own code left out", "seed": self.seed}

    def _shares(self) -> list[float]:
        return list(dict.fromkeys(point.share for point in self.points))

    def _ranks(self) -> list[int]:
        return list(dict.fromkeys(point.rank for point in self.points))
