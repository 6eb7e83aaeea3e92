"""The bytes that a prior's probabilities promise are those of a file which gives the ids back."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from arithmetic_code import Reader, Writer, tables
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.data.tokens import (
    TokenMeta,
    TokenStore,
    token_schema,
    token_table,
    write_token_manifest,
    write_token_shard,
)
from flextok.evaluate.config import EvaluationConfig, ReportConfig
from flextok.evaluate.prior_statistics import prior_statistics
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.report import write_report
from flextok.evaluate.results import Metric
from flextok.evaluate.tokens import token_statistics
from flextok.model.checkpoint import save_checkpoint
from flextok.model.load import load_prior
from flextok.model.priors.autoregressive import AutoregressivePrior
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.sampling.trunk import CachedTrunk

IMAGES, POSITIONS, VOCABULARY, CLASSES = 400, 6, 300, 3


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A prior of uneven probabilities, and ids that it drew itself."""
    folder = tmp_path_factory.mktemp("drawn")
    config = PriorConfig(
        width=32, depth=2, head_dim=16, num_tokens=POSITIONS, vocab_size=VOCABULARY, num_classes=CLASSES
    )
    prior = Prior.create(config, seed=0)
    with torch.no_grad():
        prior.head.weight.normal_(std=0.4, generator=torch.Generator().manual_seed(1))
    url = save_checkpoint(str(folder / "prior"), "prior", prior.state_dict(), prior.config, [], {}).url
    labels = [row % CLASSES for row in range(IMAGES)]
    ids = prior.generate(labels=labels, seed=3).numpy()
    meta = TokenMeta(tokenizer="t", vocab_size=VOCABULARY, num_tokens=POSITIONS)
    columns = {"key": [f"{row:04d}" for row in range(IMAGES)], "label": labels}
    table = token_table(token_schema(meta), ids, columns)
    record = write_token_shard(f"{folder}/tokens/000000.parquet", table.schema, [table])
    write_token_manifest(f"{folder}/tokens", "tokens", [record], meta, [], {})
    return url, f"{folder}/tokens"


Choose = Callable[[int, np.ndarray], list[int]]


@torch.no_grad()
def step_through(prior: AutoregressivePrior, labels_B: torch.Tensor, keep: int, choose: Choose) -> None:
    """As in drawing: of each position `choose` has the tables of all images, and says which ids stand there."""
    trunk = CachedTrunk(prior)
    cache = trunk.new_cache(len(labels_B), keep)
    inputs = (prior.start + prior.classes(labels_B))[:, None]
    for place in range(keep):
        logits_BV = trunk.logits(trunk.advance(inputs, None, cache))
        inputs = prior.embedding(torch.tensor(choose(place, tables(logits_BV.numpy()))))[:, None]


@pytest.mark.parametrize("keep", [2, POSITIONS])
def test_an_arithmetic_code_reaches_the_stated_size_and_gives_the_ids_back(drawn: tuple[str, str], keep: int) -> None:
    """The statement is by the loss of whole rows; both sides of the code compute one position at a time."""
    prior_url, tokens_url = drawn
    prior, store = load_prior(prior_url).eval(), TokenStore.open(tokens_url)
    labels_B, ids_BL = torch.from_numpy(store.labels()), store.ids().astype(int)
    writer = Writer()

    def write(place: int, tables_BV: np.ndarray) -> list[int]:
        for id, table in zip(ids_BL[:, place].tolist(), tables_BV, strict=True):
            writer.write(id, table)
        return ids_BL[:, place].tolist()

    step_through(prior, labels_B, keep, write)
    code = writer.finish()
    stated = numbers(prior_statistics(prior_url, tokens_url, tokens_url).metrics)[keep]
    assert len(code) == pytest.approx(stated.value * IMAGES, rel=0.01)
    assert stated.value < 0.9 * keep * math.log2(VOCABULARY) / 8
    assert (stated.protocol["condition"], stated.protocol["condition_bytes"]) == ("class", math.log2(CLASSES) / 8)

    reader, found = Reader(code), []

    def read(place: int, tables_BV: np.ndarray) -> list[int]:
        found.append([reader.read(table) for table in tables_BV])
        return found[place]

    step_through(prior, labels_B, keep, read)
    assert np.array_equal(np.array(found).T, ids_BL[:, :keep])


def test_bytes_are_the_sum_of_each_images_logarithms(drawn: tuple[str, str]) -> None:
    """By a softmax in float64 of logits computed for each image alone."""
    prior_url, tokens_url = drawn
    prior, store = load_prior(prior_url).eval(), TokenStore.open(tokens_url)
    bytes_NL = np.empty((IMAGES, POSITIONS))

    def look(place: int, tables_BV: np.ndarray) -> list[int]:
        p_BV = np.diff(tables_BV) / tables_BV[:, -1:]
        ids_B = store.ids()[:, place].astype(int)
        bytes_NL[:, place] = -np.log2(p_BV[np.arange(IMAGES), ids_B]) / 8
        return ids_B.tolist()

    step_through(prior, torch.from_numpy(store.labels()), POSITIONS, look)
    found = prior_statistics(prior_url, tokens_url, tokens_url, EvaluationConfig(batch_size=33))
    for keep, number in numbers(found.metrics).items():
        of_images = bytes_NL[:, :keep].sum(axis=1)
        assert number.value == pytest.approx(of_images.mean(), rel=1e-3)  # the tables are of 22 bits
        assert number.standard_error == pytest.approx(of_images.std(ddof=1) / math.sqrt(IMAGES), rel=1e-2)
        assert found.code.bytes_L[keep - 1] == pytest.approx(number.value)


def test_report_has_distortion_over_the_bytes_of_each_code(pipeline: TinyPipeline) -> None:
    config = EVALUATION.model_copy(update={"codecs": ("webp",), "keep": (1, 3, 4)})
    made = evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, config)
    inputs = replace(pipeline.report_inputs(), reconstruction_url=made.url)
    page = write_report(inputs, pipeline.evaluations, ReportConfig())
    series = {item["name"]: item for item in json.loads(Path(page.url, "metrics.json").read_text())["series"]}
    of_prior, of_entropy, plain = (series[f"{name}_psnr_by_bytes"] for name in ("prior", "entropy", "tokens"))
    assert of_prior["values"] == of_entropy["values"] == pytest.approx(plain["values"], rel=1e-5)
    losses = np.cumsum(series["prior_loss_by_position"]["values"])[[0, 2, 3]] / 8
    assert of_prior["at"] == pytest.approx(losses + of_prior["protocol"]["code"]["condition_bytes"], rel=1e-5)
    entropies = token_statistics(pipeline.train_tokens).entropy_by_position().cumsum()[[0, 2, 3]] / 8
    assert of_entropy["at"] == pytest.approx(entropies, rel=1e-5)
    html = Path(page.html_path).read_text()
    assert "tokens, by the prior, bytes of an image" in html and "code by the prior, held out" in html


def numbers(metrics: list[Metric]) -> dict[int, Metric]:
    return {metric.k: metric for metric in metrics if metric.name == "prior_bytes_per_image" and metric.k}
