"""What is said of ids as sequences: what an id tells of the next, how new ones keep coming, what compressors find."""

import lzma
import math

import numpy as np
import pyarrow as pa

from flextok.metrics.base import STATISTICS, Quantity
from flextok.metrics.tokens import entropy_bits

ZSTD_LEVEL, XZ_PRESET = 19, 6
NGRAMS = (1, 2, 3, 4)
HEAPS_FROM = 16
"""Ids read at the first point of the fit; the next are at twice as many, each time."""
DEAD = 0.01
"""Share of the most entropy that a dimension can have, below which it is called dead."""


def pair_entropies(first_N: np.ndarray, second_N: np.ndarray) -> tuple[float, float, int]:
    """(H(second | first), I(first; second), distinct pairs) in bits of the histograms of N pairs, with no correction."""
    _, pairs = np.unique(np.stack([first_N, second_N]), axis=1, return_counts=True)
    alone = [entropy_bits(np.unique(each, return_counts=True)[1]) for each in (first_N, second_N)]
    joint = entropy_bits(pairs)
    return joint - alone[0], alone[0] + alone[1] - joint, len(pairs)


def information_bias(first_N: np.ndarray, second_N: np.ndarray, distinct_pairs: int) -> float:
    """By how many bits the information of histograms is too large in the mean, to the first order in 1 / N (Miller 1955,
    Panzeri and Treves 1996): (distinct pairs - distinct first - distinct second + 1) / (2 N ln 2).

    It falls far short where N is not several times the number of pairs there may be.
    """
    distinct = distinct_pairs - len(np.unique(first_N)) - len(np.unique(second_N)) + 1
    return distinct / (2 * len(first_N) * math.log(2))


def distinct_ngrams(ids_NP: np.ndarray, n: int, vocabulary: int) -> float:
    """Distinct runs of `n` neighbours within rows, divided by all of them; in (0, 1]."""
    places = ids_NP.shape[1] - n + 1
    if vocabulary**n < 2**64:
        runs = np.zeros((len(ids_NP), places), np.uint64)
        for offset in range(n):
            runs = runs * np.uint64(vocabulary) + ids_NP[:, offset : offset + places].astype(np.uint64)
        return len(np.unique(runs)) / runs.size
    runs = np.lib.stride_tricks.sliding_window_view(ids_NP, n, axis=1).reshape(-1, n)
    return len(np.unique(runs, axis=0)) / len(runs)


def growth(ids_T: np.ndarray) -> dict[int, int]:
    """Distinct ids among the first n of `ids_T`, by n: from `HEAPS_FROM` on at each doubling, and at the end."""
    _, first_seen = np.unique(ids_T, return_index=True)
    points = []
    read = HEAPS_FROM
    while read < len(ids_T):
        points.append(read)
        read *= 2
    seen = np.sort(first_seen)
    return {read: int(np.searchsorted(seen, read)) for read in [*points, len(ids_T)]}


def heaps_fit(distinct_by_read: dict[int, int]) -> tuple[float, float, float]:
    """(k, beta, R^2) of distinct = k read^beta (Heaps 1978), by least squares of logarithms; beta 0 where nothing new
    comes, 1 where every id is new."""
    x, y = (np.log(list(each)) for each in (distinct_by_read.keys(), distinct_by_read.values()))
    if len(x) < 2:
        return float(np.exp(y[0])), 0.0, 1.0
    beta, constant = np.polyfit(x, y, 1)
    residual, total = np.square(y - beta * x - constant).sum(), np.square(y - y.mean()).sum()
    return float(np.exp(constant)), float(beta), float(1 - residual / total) if total > 0 else 1.0


def compressed_bytes(ids_NP: np.ndarray) -> dict[str, float]:
    """Bytes for each id of the rows one after the other, little-endian in their own type, by zstd and by xz."""
    plain = np.ascontiguousarray(ids_NP, ids_NP.dtype.newbyteorder("<")).tobytes()
    zstd = pa.Codec("zstd", compression_level=ZSTD_LEVEL).compress(plain, asbytes=True)
    xz = lzma.compress(plain, preset=XZ_PRESET)
    return {"zstd": len(zstd) / ids_NP.size, "xz": len(xz) / ids_NP.size}


def fsq_entropies(counts_V: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """Entropy in bits of each dimension's level [d], of the counts of ids of finite scalar quantization with `levels`,
    the first dimension fastest in the id."""
    grid = counts_V.reshape(levels[::-1])  # the last axis is the first dimension
    axes = range(len(levels))
    others = (tuple(axis for axis in axes if axis != len(levels) - 1 - dimension) for dimension in axes)
    return np.array([entropy_bits(grid.sum(axis=each)) for each in others])


SAMPLED = "of a sample of the rows, evenly spaced"
for _name, _definition, _unit in (
    (
        "conditional_entropy_bits",
        "entropy of an id when the one before it is known, by the histograms of both, mean over places; biased low",
        "bits",
    ),
    (
        "neighbour_information_bits",
        (
            "mutual information of an id and the one before it, by histograms, minus its bias to the first order in 1 / N "
            "(Miller 1955), mean over places; `small_sample`: too few images for that correction"
        ),
        "bits",
    ),
    ("distinct_bigrams", "distinct pairs of neighbouring ids / all pairs of neighbours", "fraction"),
    (
        "heaps_exponent",
        (
            f"beta of distinct = k read^beta, log-log least squares at {HEAPS_FROM}, {2 * HEAPS_FROM}, ... ids of rows in a "
            "random order (seed 0)"
        ),
        "",
    ),
):
    STATISTICS.register(Quantity(name=_name, definition=f"{_definition}; {SAMPLED}", unit=_unit, better=""))
for _name, _how in (("zstd", f"level {ZSTD_LEVEL}"), ("xz", f"preset {XZ_PRESET}")):
    _definition = f"ids row by row through {_name}, {_how} / ids; {SAMPLED}"
    STATISTICS.register(Quantity(f"{_name}_bytes_per_token", _definition, "bytes", "lower"))
STATISTICS.register(
    Quantity(
        name="dead_dimensions",
        definition="of FSQ: dimensions whose levels have an entropy below "
        f"{DEAD:.0%} of the most they can have; of the ids of all places",
        unit="",
        better="lower",
    )
)
