"""Token and prior statistics against distributions known by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pipeline import TinyPipeline

from flextok.data.tokens import (
    TokenMeta,
    TokenStore,
    token_schema,
    token_table,
    write_token_manifest,
    write_token_shard,
)
from flextok.evaluate.prior_statistics import prior_statistics
from flextok.evaluate.tokens import token_statistics
from flextok.metrics.tokens import entropy_bits, zipf_slope
from flextok.model.checkpoint import save_checkpoint
from flextok.model.load import load_prior
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig


def store(folder: Path, ids: np.ndarray, labels: list[int], vocab_size: int) -> str:
    meta = TokenMeta(tokenizer="t", vocab_size=vocab_size, num_tokens=ids.shape[1])
    columns = {"key": [f"{row}" for row in range(len(ids))], "label": labels}
    table = token_table(token_schema(meta), ids, columns)
    half = len(ids) // 2
    records = [
        write_token_shard(f"{folder}/{name}.parquet", table.schema, [part])
        for name, part in (("000000", table.slice(0, half)), ("000001", table.slice(half)))
    ]
    write_token_manifest(str(folder), "tokens", records, meta, [], {})
    return str(folder)


@pytest.fixture
def by_hand(tmp_path: Path) -> str:
    """Position 0 uses two ids equally, position 1 always the same one; vocabulary 8."""
    ids = np.array([[row % 2, 5] for row in range(40)])
    return store(tmp_path, ids, [row % 2 for row in range(40)], vocab_size=8)


def test_statistics_of_a_distribution_known_by_hand(by_hand: str):
    statistics = token_statistics(by_hand)
    values = {(metric.name, metric.k): metric.value for metric in statistics.metrics()}
    assert statistics.entropy_by_position() == pytest.approx([1.0, 0.0])
    assert values["codebook_usage", None] == pytest.approx(3 / 8)
    assert values["bits_per_image", 2] == pytest.approx(2 * 3)
    assert values["entropy_bits_per_image", 2] == pytest.approx(1.0)
    # Shares 1/4, 1/4, 1/2 over both positions: 1.5 bits.
    assert values["codebook_perplexity", None] == pytest.approx(2**1.5)
    usage = next(metric for metric in statistics.metrics() if metric.name == "codebook_usage")
    assert usage.protocol["tokens_counted"] == 80


def test_bytes_of_an_id_beside_the_least_it_could_take(tmp_path: Path):
    """Ids that use the whole vocabulary evenly pack to its logarithm; what is beside them is counted apart."""
    ids = np.random.default_rng(0).integers(0, 64_000, (4000, 64))
    url = store(tmp_path, ids, [0] * len(ids), vocab_size=64_000)
    values = {metric.name: metric.value for metric in token_statistics(url).metrics()}
    least = math.log2(64_000) / 8
    assert values["vocabulary_bytes_per_token"] == pytest.approx(least)
    assert values["entropy_bytes_per_token"] < least  # 4,000 images cannot show all 64,000 ids at a position
    assert values["column_bytes_per_token"] == pytest.approx(least, rel=0.01)
    files = sum(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    assert values["stored_bytes_per_token"] == pytest.approx(files / ids.size)
    assert values["column_bytes_per_token"] < values["stored_bytes_per_token"] < 1.1 * least


def test_counts_are_those_of_a_plain_loop(pipeline: TinyPipeline):
    statistics = token_statistics(pipeline.train_tokens)
    ids = TokenStore.open(pipeline.train_tokens).ids()
    for position in range(ids.shape[1]):
        assert statistics.counts_NV[position].tolist() == np.bincount(ids[:, position], minlength=16).tolist()


def test_entropy_and_zipf_slope():
    assert entropy_bits(np.array([1, 1, 1, 1])) == pytest.approx(2.0)
    assert entropy_bits(np.zeros(4, int)) == 0.0
    assert zipf_slope((10_000 / np.arange(1, 200)).astype(int)) == pytest.approx(-1.0, abs=0.01)
    assert zipf_slope(np.full(50, 7)) == pytest.approx(0.0, abs=1e-9)
    assert zipf_slope(np.array([1, 2])) == 0.0


def prior_for(by_hand: str, folder: Path, favour_label: bool) -> str:
    """A prior whose head is all zero, or which gives position 0 the id of its label with near certainty."""
    config = PriorConfig(width=16, depth=1, head_dim=16, num_tokens=2, vocab_size=8, num_classes=2)
    prior = Prior.create(config, seed=0)
    with torch.no_grad():
        if favour_label:
            prior.start.zero_()
            prior.positions.zero_()
            prior.classes.weight.copy_(10 * torch.nn.functional.one_hot(torch.arange(2), 16))
            for block in prior.blocks:
                for parameter in (block.attention.out.weight, block.down.weight):
                    parameter.zero_()
            prior.head.weight.copy_(torch.eye(8, 16) * 10)
    return save_checkpoint(str(folder / "prior"), "prior", prior.state_dict(), prior.config, [], {}).url


def test_prior_that_knows_nothing_pays_log2_of_the_vocabulary(by_hand: str, tmp_path: Path):
    found = prior_statistics(prior_for(by_hand, tmp_path, favour_label=False), by_hand, by_hand)
    assert found.value("prior_loss_bits") == pytest.approx(3.0)
    assert found.value("prior_loss_bits_shuffled") == pytest.approx(3.0)
    assert found.value("token_entropy_bits") == pytest.approx(0.5)
    assert found.value("prior_gain") == pytest.approx(1 - 3 / 0.5)


def test_prior_that_knows_its_labels_pays_less_with_the_right_ones(by_hand: str, tmp_path: Path):
    found = prior_statistics(prior_for(by_hand, tmp_path, favour_label=True), by_hand, by_hand)
    loss = next(series for series in found.series if series.name == "prior_loss_by_position")
    assert loss.values[0] < 0.01
    assert found.value("prior_loss_bits_shuffled") > found.value("prior_loss_bits") + 1


def test_prior_loss_is_the_mean_over_rows(pipeline: TinyPipeline):
    found = prior_statistics(pipeline.prior, pipeline.train_tokens, pipeline.val_tokens)
    prior, tokens = load_prior(pipeline.prior), TokenStore.open(pipeline.val_tokens)
    ids = torch.from_numpy(tokens.ids().astype(np.int64))
    nats = prior.loss(ids, torch.from_numpy(tokens.labels())).mean().item()
    assert found.value("prior_loss_bits") == pytest.approx(nats / math.log(2), rel=1e-5)
