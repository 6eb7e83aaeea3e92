"""What a token store says of its ids as sequences, and of the dimensions of their codes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from flextok.data.tokens import TokenStore
from flextok.evaluate.results import Metric, Series, statistic
from flextok.evaluate.tokens import TokenStatistics
from flextok.metrics import sequences
from flextok.model.load import tokenizer_outline
from flextok.model.quantizers.config import FSQConfig

MOST_IDS = 2**21
"""Read of a store; what is beyond changes these numbers little and takes long to sort."""
ROWS_PER_PAIR = 5
"""Images for each distinct pair of neighbours, below which the correction of their information is not enough."""


def statistics_of_ids(
    tokens: TokenStatistics, tokens_url: str, tokenizer_url: str
) -> tuple[list[Metric], list[Series]]:
    """Numbers and curves of the store at `tokens_url`, whose counts are `tokens`: as sequences, and of FSQ by dimension."""
    metrics, series = sequence_statistics(tokens_url)
    quantizer = tokenizer_outline(tokenizer_url).config.quantizer
    if isinstance(quantizer, FSQConfig):
        of_dimensions = code_dimensions(tokens, quantizer.levels)
        metrics, series = metrics + of_dimensions[0], series + of_dimensions[1]
    return metrics, series


def sequence_statistics(tokens_url: str, most_ids: int = MOST_IDS) -> tuple[list[Metric], list[Series]]:
    """Numbers and curves of the ids of every n-th row, at most `most_ids` of them: `conditional_entropy_bits`,
    `neighbour_information_bits`, `distinct_bigrams`, `heaps_exponent`, `zstd_` and `xz_bytes_per_token`.

    Ids of several codebooks stand one after the other, so the neighbour of an id may be one of its own place. Raises
    UsageError for a store of continuous values.
    """
    store = TokenStore.open(tokens_url)
    store.require_ids()
    ids_NP, stride = _sampled_rows(store, most_ids)
    protocol = {
        "tokens": store.digest,
        "tokenizer": store.tokenizer,
        "images": len(ids_NP),
        "every_nth_row": stride,
        "vocabulary": store.vocab_size,
        "positions": store.num_tokens,
        "codebooks": store.codebooks,
    }
    pairs = _neighbours(ids_NP, protocol) if ids_NP.shape[1] > 1 else ([], [])
    grown, grown_series = _growth(ids_NP, protocol)
    file = {**protocol, "dtype": str(ids_NP.dtype), "pyarrow": pa.__version__}
    packed = [
        statistic(f"{name}_bytes_per_token", value, file) for name, value in sequences.compressed_bytes(ids_NP).items()
    ]
    return [*pairs[0], grown, *packed], [*pairs[1], grown_series]


def code_dimensions(tokens: TokenStatistics, levels: Sequence[int]) -> tuple[list[Metric], list[Series]]:
    """`dead_dimensions` and the curve `fsq_entropy_by_dimension`, of a store whose tokenizer has FSQ of `levels`."""
    entropies = sequences.fsq_entropies(tokens.counts_NV.sum(axis=0), tuple(levels))
    protocol = {**tokens.protocol(), "levels": list(levels)}
    dead = int(np.sum(entropies < sequences.DEAD * np.log2(levels)))
    axis = {**protocol, "unit": "bits", "definition": "entropy of the levels of each dimension of the code"}
    places = range(1, len(levels) + 1)
    curve = Series("fsq_entropy_by_dimension", "dimension", places, entropies.tolist(), axis)
    return [statistic("dead_dimensions", dead, protocol)], [curve]


def _sampled_rows(store: TokenStore, most_ids: int) -> tuple[np.ndarray, int]:
    """Ids [N, L * C] of every n-th row, and n."""
    stride = math.ceil(len(store) * store.meta.ids_per_row / most_ids)
    parts, start = [], 0
    for index, shard in enumerate(store.shards):
        for group in range(len(shard.row_groups)):
            column = store.read_row_group(index, group, ["tokens"])["tokens"].combine_chunks()
            ids = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, store.meta.ids_per_row)
            parts.append(ids[-start % stride :: stride])
            start += len(ids)
    return np.concatenate(parts), stride


def _neighbours(ids_NP: np.ndarray, protocol: dict[str, Any]) -> tuple[list[Metric], list[Series]]:
    """What an id tells of the next, place by place, and how many of the runs of ids are distinct."""
    pairs = [(ids_NP[:, place - 1], ids_NP[:, place]) for place in range(1, ids_NP.shape[1])]
    found = [sequences.pair_entropies(*pair) for pair in pairs]
    biases = [sequences.information_bias(*pair, distinct) for pair, (_, _, distinct) in zip(pairs, found, strict=True)]
    entropies = [entropy for entropy, _, _ in found]
    corrected = [information - bias for (_, information, _), bias in zip(found, biases, strict=True)]
    most_pairs = max(distinct for _, _, distinct in found)
    small = {**protocol, "distinct_pairs": most_pairs, "small_sample": len(ids_NP) < ROWS_PER_PAIR * most_pairs}
    share = {
        n: sequences.distinct_ngrams(ids_NP, n, protocol["vocabulary"])
        for n in sequences.NGRAMS
        if n <= ids_NP.shape[1]
    }
    numbers = [
        statistic("conditional_entropy_bits", float(np.mean(entropies)), small),
        statistic(
            "neighbour_information_bits", float(np.mean(corrected)), {**small, "bias_taken_off": float(np.mean(biases))}
        ),
        statistic("distinct_bigrams", share[2], protocol),
    ]
    places = range(2, len(pairs) + 2)
    bits = {**small, "unit": "bits"}
    of_runs = {**protocol, "definition": "distinct runs of n neighbouring ids / all of them"}
    return numbers, [
        Series("conditional_entropy_by_position", "position", places, entropies, bits),
        Series("neighbour_information_by_position", "position", places, corrected, bits),
        Series("distinct_ngrams_by_n", "n", list(share), list(share.values()), of_runs),
    ]


def _growth(ids_NP: np.ndarray, protocol: dict[str, Any]) -> tuple[Metric, Series]:
    """How the number of distinct ids grows, images in a random order: a store may be sorted by class."""
    order = np.random.default_rng(0).permutation(len(ids_NP))
    distinct = sequences.growth(ids_NP[order].ravel())
    constant, exponent, fit = sequences.heaps_fit(distinct)
    record = {**protocol, "k": constant, "r_squared": fit}
    curve = {**protocol, "definition": "distinct ids among the first n read, images in a random order (seed 0)"}
    return statistic("heaps_exponent", exponent, record), Series(
        "distinct_ids_by_tokens_read", "ids read", list(distinct), list(distinct.values()), curve
    )
