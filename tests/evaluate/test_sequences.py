"""Ids as sequences: beside scipy's formulas, plain loops, laws that they were drawn from, and the quantizer's own codes."""

import itertools
import lzma
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.special import rel_entr
from scipy.stats import entropy, linregress
from test_token_statistics import store
from tiny_pipeline import TinyPipeline

from flextok.data.tokens import TokenStore
from flextok.evaluate.sequences import code_dimensions, sequence_statistics, statistics_of_ids
from flextok.evaluate.tokens import token_statistics
from flextok.metrics import sequences
from flextok.model.quantizers.config import FSQConfig


def chain(rows: int, places: int, vocabulary: int, stay: float, seed: int = 0) -> np.ndarray:
    """Ids of which each is the one before it with the probability `stay`, else uniform."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, vocabulary, (rows, places))
    for place in range(1, places):
        kept = random.random(rows) < stay
        ids[kept, place] = ids[kept, place - 1]
    return ids


def test_entropies_of_pairs_are_those_of_scipy() -> None:
    first, second = chain(500, 2, 6, 0.6).T
    table = np.zeros((6, 6))
    np.add.at(table, (first, second), 1)
    joint = table / table.sum()
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    conditional, information, distinct = sequences.pair_entropies(first, second)
    assert conditional == pytest.approx(sum(p * entropy(row, base=2) for p, row in zip(rows, joint, strict=True)))
    assert information == pytest.approx(rel_entr(joint, np.outer(rows, columns)).sum() / math.log(2))
    assert distinct == np.count_nonzero(table)


@pytest.mark.parametrize("stay", [0.0, 0.5])
def test_information_is_right_in_the_mean_once_its_bias_is_off(stay: float) -> None:
    """Of the law that the ids were drawn from; without the correction it is too large."""
    vocabulary, rows = 8, 400
    joint = np.full((vocabulary, vocabulary), (1 - stay) / vocabulary**2) + np.eye(vocabulary) * stay / vocabulary
    true = rel_entr(joint, np.full_like(joint, 1 / vocabulary**2)).sum() / math.log(2)
    plain, corrected = [], []
    for seed in range(60):
        first, second = chain(rows, 2, vocabulary, stay, seed).T
        _, information, distinct = sequences.pair_entropies(first, second)
        plain.append(information)
        corrected.append(information - sequences.information_bias(first, second, distinct))
    assert np.mean(plain) > true + 0.05
    assert np.mean(corrected) == pytest.approx(true, abs=0.015)


@pytest.mark.parametrize("vocabulary", [5, 2**31])
def test_distinct_runs_are_those_of_a_plain_loop(vocabulary: int) -> None:
    """Also where runs of ids do not fit into 64 bits."""
    ids = np.random.default_rng(0).integers(0, 5, (60, 6)) * (vocabulary // 5)
    for n in (1, 2, 3):
        counted = Counter(tuple(row[at : at + n]) for row in ids.tolist() for at in range(6 - n + 1))
        assert sequences.distinct_ngrams(ids, n, vocabulary) == len(counted) / counted.total()


def test_growth_is_that_of_a_plain_loop_and_its_fit_that_of_scipy() -> None:
    ids = np.random.default_rng(0).zipf(1.5, 3000) % 1000
    grown = sequences.growth(ids)
    assert list(grown) == [16, 32, 64, 128, 256, 512, 1024, 2048, 3000]
    assert all(distinct == len(set(ids[:read].tolist())) for read, distinct in grown.items())
    expected = linregress(np.log(list(grown)), np.log(list(grown.values())))
    constant, exponent, fit = sequences.heaps_fit(grown)
    found = exponent, math.log(constant), fit
    assert found == pytest.approx((expected.slope, expected.intercept, expected.rvalue**2))
    assert sequences.heaps_fit(sequences.growth(np.arange(500)))[1] == pytest.approx(1)
    assert sequences.heaps_fit(sequences.growth(np.zeros(500, int)))[1] == pytest.approx(0)


def test_compressors_come_near_the_entropy_and_give_the_ids_back() -> None:
    ids = np.random.default_rng(0).integers(0, 256, (400, 50)).astype(np.uint16)
    found = sequences.compressed_bytes(ids)
    assert 1 < found["xz"] < 1.25 and 1 < found["zstd"] < 1.25
    assert max(sequences.compressed_bytes(np.zeros_like(ids)).values()) < 0.02
    for name, file in (
        ("xz", lzma.compress(ids.tobytes())),
        ("zstd", pa.compress(ids.tobytes(), "zstd", asbytes=True)),
    ):
        assert found[name] <= len(file) / ids.size * 1.01


def test_dead_dimensions_are_those_of_the_quantizers_codes(tmp_path: Path) -> None:
    levels = (4, 3, 5)
    quantizer = FSQConfig(levels=levels).build()
    ids = np.random.default_rng(0).integers(0, 60, (200, 2))
    codes = quantizer.codes(torch.from_numpy(ids)).clone()
    codes[..., 1] = 0  # a dimension that the encoder does not use
    digits = (codes * (quantizer.levels // 2) + quantizer.levels // 2).round().long()
    ids = (digits * quantizer.basis).sum(dim=-1).numpy()
    (number,), (curve,) = code_dimensions(token_statistics(store(tmp_path, ids, [0] * 200, 60)), levels)
    flat = codes.reshape(-1, 3).numpy()
    expected = [entropy(np.unique(column, return_counts=True)[1], base=2) for column in flat.T]
    assert curve.values == pytest.approx(expected, abs=1e-9)
    assert (number.name, number.value, curve.values[1]) == ("dead_dimensions", 1, 0)


def test_a_store_is_read_as_its_rows(tmp_path: Path) -> None:
    ids = chain(300, 4, 6, 0.7)
    url = store(tmp_path, ids, [0] * 300, vocab_size=6)
    metrics, series = sequence_statistics(url)
    values = {metric.name: metric.value for metric in metrics}
    pairs = [sequences.pair_entropies(ids[:, at], ids[:, at + 1]) for at in range(3)]
    assert values["conditional_entropy_bits"] == pytest.approx(np.mean([pair[0] for pair in pairs]))
    assert values["distinct_bigrams"] == 36 / 900
    by_name = {each.name: each for each in series}
    assert by_name["conditional_entropy_by_position"].values == pytest.approx([pair[0] for pair in pairs])
    assert list(by_name["distinct_ngrams_by_n"].at) == [1, 2, 3, 4]
    assert by_name["distinct_ids_by_tokens_read"].values[-1] == 6
    record = next(metric.protocol for metric in metrics if metric.name == "neighbour_information_bits")
    assert (record["images"], record["every_nth_row"], record["small_sample"]) == (300, 1, False)
    # Every 3rd row, over the ends of shards.
    fewer, _ = sequence_statistics(url, most_ids=400)
    third = sequences.distinct_ngrams(ids[::3], 2, 6)
    assert {each.name: each.value for each in fewer}["distinct_bigrams"] == pytest.approx(third)
    assert fewer[0].protocol["images"] == 100
    alone, _ = sequence_statistics(store(tmp_path / "one", ids[:, :1], [0] * 300, vocab_size=6))
    assert "distinct_bigrams" not in {each.name for each in alone}


def test_of_a_real_tokenizer(pipeline: TinyPipeline) -> None:
    tokens = token_statistics(pipeline.train_tokens)
    metrics, series = statistics_of_ids(tokens, pipeline.train_tokens, pipeline.tokenizer)
    assert {"dead_dimensions", "heaps_exponent", "xz_bytes_per_token"} <= {each.name for each in metrics}
    dimensions = next(each for each in series if each.name == "fsq_entropy_by_dimension")
    digits = np.array(list(itertools.chain.from_iterable(TokenStore.open(pipeline.train_tokens).ids().tolist()))) % 4
    assert dimensions.values[0] == pytest.approx(entropy(np.bincount(digits), base=2))
