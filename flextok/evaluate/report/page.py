"""What is on the report's page: numbers picked out, charts, pictures, lineage. The template only lays it out."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore
from flextok.evaluate.config import ReportConfig
from flextok.evaluate.extremes import read_extremes
from flextok.evaluate.generation import RANDOM_PICTURES
from flextok.evaluate.grid import read_grid
from flextok.evaluate.report.contents import content_charts, slice_charts
from flextok.evaluate.report.curves import quality_charts, rate_charts, token_charts
from flextok.evaluate.report.heatmaps import HeatMap, legend_uri
from flextok.evaluate.report.histories import TrainingHistory
from flextok.evaluate.report.numbers import Numbers
from flextok.evaluate.report.pictures import Album, extreme_rows, reconstruction_rows, sample_rows
from flextok.evaluate.report.summary import cards
from flextok.evaluate.report.training import told_alarms, training_groups
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
    heat_maps: Sequence[HeatMap],
    histories: Sequence[TrainingHistory],
    samples: SamplesResult,
    sample_store: TokenStore,
    corpus: Corpus,
    config: ReportConfig,
    settings: Sequence[tuple[str, Any]],
) -> dict[str, Any]:
    """The variables of the template."""
    shown, album = Numbers(numbers), Album()
    keeps = shown.keeps()
    block = read_provenance(generation_url)
    first = numbers.metrics[0]["protocol"]
    reconstructions = reconstruction_rows(album, read_grid(reconstruction_url), corpus, keeps)
    extremes = extreme_rows(album, read_extremes(reconstruction_url), corpus)
    rows_of_samples = sample_rows(album, samples, sample_store, config)
    random_grid = read_grid(generation_url)[:RANDOM_PICTURES]
    random_pictures = [album.add(png) for each in random_grid for png in each.png.values()]
    encoding, uris = album.written()
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
        "content_charts": content_charts(shown),
        "slice_charts": slice_charts(shown),
        "token_charts": token_charts(numbers),
        "heat_maps": heat_maps,
        "heat_values": [each.to_json() for each in heat_maps],
        "heat_legend": legend_uri(),
        "training_groups": training_groups(histories),
        "alarms": told_alarms(histories),
        "uris": uris,
        "encoding": str(encoding),
        "is_lossless": encoding.quality is None,
        "reconstructions": reconstructions,
        "extremes": extremes,
        "bits": {keep: shown.pick("bits_per_image", keep) for keep in keeps if keep in shown.curve("bits_per_image")},
        "sample_keeps": samples.keep,
        "samples": rows_of_samples,
        "sample_axis": "class" if (sample_store.labels() >= 0).any() else "caption",
        "random_pictures": random_pictures,
        "random_keep": shown.random_keep(),
        "small_sample": shown.has_small_sample(),
        "rows": shown.rows,
        "series": shown.series(),
        "lineage": _lineage([reconstruction_url, generation_url]),
        "settings": [(name, json.dumps(recipe, indent=2, sort_keys=True)) for name, recipe in settings],
        "environment": {**first["environment"], **block["environment"], "flextok": __version__},
    }


def render(template: str, page: Mapping[str, Any]) -> str:
    """A page as HTML; every text in it is escaped.

    Its Content-Security-Policy lets nothing be fetched, and no style and no script work but the page's own, known by hash.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("style.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    own = {"style": Markup(style), "script": Markup(script), "policy": Markup(policy)}
    return environment.get_template(template).render(**own, **page)


def _hash(text: str) -> str:
    """How a policy names the content of an element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


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
