"""What is on the report's page: numbers picked out, charts, pictures, lineage. The template only lays it out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore
from flextok.evaluate.config import ReportConfig
from flextok.evaluate.generation import RANDOM_PICTURES
from flextok.evaluate.grid import read_grid
from flextok.evaluate.report.curves import quality_charts, rate_charts, token_charts, training_charts
from flextok.evaluate.report.numbers import Numbers
from flextok.evaluate.report.pictures import picture, reconstruction_rows, sample_rows
from flextok.evaluate.report.summary import cards
from flextok.evaluate.results import EvaluationResult
from flextok.evaluate.sampling import SamplesResult
from flextok.provenance import lineage, read_provenance
from flextok.version import __version__

TEMPLATES = Path(__file__).parent / "templates"
DIGEST_SHOWN = 12


def build_page(
    title: str,
    numbers: EvaluationResult,
    reconstruction_url: str,
    generation_url: str,
    tokens: TokenStore,
    samples: SamplesResult,
    sample_store: TokenStore,
    corpus: Corpus,
    config: ReportConfig,
    settings: Sequence[tuple[str, Any]],
) -> dict[str, Any]:
    """The variables of the template."""
    shown = Numbers(numbers)
    keeps = shown.keeps()
    block = read_provenance(generation_url)
    first = numbers.metrics[0]["protocol"]
    return {
        "title": title,
        "corpus": corpus.name,
        "created": block["created"].replace("T", " ").replace("+00:00", " UTC"),
        "num_tokens": tokens.num_tokens,
        "vocab_size": tokens.vocab_size,
        "size_px": first["preprocess"]["size"],
        "keeps": keeps,
        "cards": cards(shown, keeps, samples.keep[-1]),
        "quality_charts": [*quality_charts(shown), *rate_charts(shown)],
        "token_charts": token_charts(numbers),
        "training_charts": training_charts(numbers),
        "reconstructions": reconstruction_rows(read_grid(reconstruction_url), corpus, keeps),
        "bits": {keep: shown.pick("bits_per_image", keep) for keep in keeps if keep in shown.curve("bits_per_image")},
        "sample_keeps": samples.keep,
        "samples": sample_rows(samples, sample_store, config),
        "sample_axis": "class" if (sample_store.labels() >= 0).any() else "caption",
        "random_pictures": [
            picture(png) for each in read_grid(generation_url)[:RANDOM_PICTURES] for png in each.png.values()
        ],
        "random_keep": shown.random_keep(),
        "small_sample": shown.has_small_sample(),
        "rows": shown.rows,
        "lineage": _lineage([reconstruction_url, generation_url]),
        "settings": [(name, json.dumps(recipe, indent=2, sort_keys=True)) for name, recipe in settings],
        "environment": {**first["environment"], **block["environment"], "flextok": __version__},
    }


def render(template: str, page: Mapping[str, Any]) -> str:
    """A page as HTML; every text in it is escaped."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**page)


def _lineage(urls: Sequence[str]) -> list[dict[str, Any]]:
    """Trees of what the evaluations came from; a node met before stands without its inputs."""
    seen: set[str] = set()

    def node(found: dict[str, Any]) -> dict[str, Any]:
        repeated = found["digest"] in seen
        seen.add(found["digest"])
        return {
            "kind": found["kind"],
            "digest": found["digest"][:DIGEST_SHOWN],
            "found": found["found"],
            "repeated": repeated and bool(found["inputs"]),
            "inputs": [] if repeated else [node(each) for each in found["inputs"]],
        }

    return [node(lineage(url)) for url in urls]
