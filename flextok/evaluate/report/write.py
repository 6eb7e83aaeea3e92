"""Gathers all numbers about a tokenizer and its prior, and writes the page and metrics.json."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore
from flextok.evaluate.coded import coded_curves
from flextok.evaluate.config import ReportConfig
from flextok.evaluate.lengths import length_statistics
from flextok.evaluate.prior_statistics import prior_statistics
from flextok.evaluate.report.heatmaps import heat_maps
from flextok.evaluate.report.histories import TrainingHistory, read_history
from flextok.evaluate.report.page import build_page, render
from flextok.evaluate.results import EvaluationResult, Metric, Series, read_evaluation, write_evaluation
from flextok.evaluate.sampling import open_samples
from flextok.evaluate.sequences import statistics_of_ids
from flextok.evaluate.tokens import token_statistics
from flextok.model.load import tokenizer_outline
from flextok.provenance import read_provenance
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.storage_errors import storage_errors

HTML = "report/index.html"
HEAT_MAPS = "report/heatmaps.json"


@dataclass(frozen=True)
class ReportInputs:
    """Folders of the artifacts a report is about. `latents_url` is None for an imported tokenizer."""

    reconstruction_url: str
    generation_url: str
    samples_url: str
    tokenizer_url: str
    prior_url: str
    train_tokens_url: str
    val_tokens_url: str
    train_url: str
    val_url: str
    latents_url: str | None = None

    def urls(self) -> list[str]:
        """All of them."""
        values = [getattr(self, field.name) for field in fields(self)]
        return [value for value in values if value is not None]


@dataclass(frozen=True)
class ReportResult:
    """A stored report; `html_path` is the page's URL or path."""

    url: str
    digest: str
    html_path: str


@storage_errors("write the report into {parent_url}")
def write_report(
    inputs: ReportInputs, parent_url: str, config: ReportConfig, compute: ComputeConfig | None = None
) -> ReportResult:
    """Gather all numbers about `inputs` and write `parent_url/<digest>/`: `report/index.html`, `metrics.json`, and
    `report/heatmaps.json`.

    Token and prior statistics are computed, the latter on a cluster where `compute` has its address; everything else is
    read. The page makes no request of any kind and shows no number that is not in metrics.json, or is the value of one
    picture (`extremes.parquet`), one cell of a heat map, or one row of a training's history. Of histories only losses are in
    metrics.json: how fast a machine was is no part of what the digest is of.
    """
    reconstruction, generation = read_evaluation(inputs.reconstruction_url), read_evaluation(inputs.generation_url)
    tokens = token_statistics(inputs.train_tokens_url)
    ids, curves_of_ids = statistics_of_ids(tokens, inputs.train_tokens_url, inputs.tokenizer_url)
    lengths, curves_of_lengths = _lengths(inputs, config)
    prior = prior_statistics(inputs.prior_url, inputs.train_tokens_url, inputs.val_tokens_url, compute=compute)
    stored = [Metric.from_json(item) for each in (reconstruction, generation) for item in each.metrics]
    metrics = [*stored, *tokens.metrics(), *ids, *lengths, *prior.metrics]
    curves = [Series.from_json(item) for item in reconstruction.series]
    coded = coded_curves(reconstruction, tokens, prior.code)
    of_tokens = [*tokens.series(), *curves_of_ids, *curves_of_lengths]
    histories = _histories(inputs)
    losses = [series for history in histories for series in history.losses()]
    series = [*curves, *of_tokens, *prior.series, *coded, *losses]

    content = EvaluationResult("", "", [each.to_json() for each in metrics], [each.to_json() for each in series])
    samples, _ = open_samples(inputs.samples_url)
    corpus = Corpus.open(inputs.val_url)
    maps = heat_maps(tokens)
    page = build_page(
        title=config.title,
        numbers=content,
        reconstruction_url=inputs.reconstruction_url,
        generation_url=inputs.generation_url,
        tokens=tokens.store,
        heat_maps=maps,
        histories=histories,
        samples=samples,
        sample_store=TokenStore.open(inputs.samples_url),
        corpus=corpus,
        config=config,
        settings=_settings(inputs),
    )
    files = {
        HTML: render("report.html.j2", page).encode(),
        HEAT_MAPS: json.dumps([each.to_json() for each in maps]).encode(),
    }
    written = write_evaluation("report", parent_url, metrics, series, inputs.urls(), config.content(), files)
    return ReportResult(written.url, written.digest, storage.join(written.url, HTML))


def _lengths(inputs: ReportInputs, config: ReportConfig) -> tuple[list[Metric], list[Series]]:
    """How many tokens images would have needed, where a threshold says when they are enough."""
    if config.oracle is None:
        return [], []
    image_px = tokenizer_outline(inputs.tokenizer_url).config.image_size
    return length_statistics(config.oracle, inputs.reconstruction_url, inputs.val_tokens_url, inputs.val_url, image_px)


def _histories(inputs: ReportInputs) -> list[TrainingHistory]:
    """Of each training, in their order."""
    trained = (("latents", inputs.latents_url), ("tokenizer", inputs.tokenizer_url), ("prior", inputs.prior_url))
    return [read_history(what, url) for what, url in trained if url is not None]


def _settings(inputs: ReportInputs) -> Sequence[tuple[str, Any]]:
    """What each artifact was made with, as its provenance says."""
    named = (
        ("stage 0 (latents)", inputs.latents_url),
        ("tokenizer", inputs.tokenizer_url),
        ("prior", inputs.prior_url),
        ("reconstructions", inputs.reconstruction_url),
        ("samples", inputs.samples_url),
        ("corpus", inputs.train_url),
    )
    return [(name, read_provenance(url)["recipe"]) for name, url in named if url is not None]
