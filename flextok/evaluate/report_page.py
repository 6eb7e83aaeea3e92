"""What stands on the report's page: numbers picked out, charts, pictures, lineage. The template only lays it out."""

import base64
import io
import itertools
import json
from collections.abc import Sequence
from typing import Any

from PIL import Image

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore
from flextok.evaluate.charts import Chart, Level, Line
from flextok.evaluate.config import ReportConfig
from flextok.evaluate.grid import LATENTS, ORIGINAL, StoredPictures, read_grid
from flextok.evaluate.results import EvaluationResult
from flextok.evaluate.sampling import SamplesResult, image_url
from flextok.provenance import lineage, read_provenance
from flextok.version import __version__

# Larger pictures are shrunk for the page, or it would weigh tens of megabytes.
THUMBNAIL_PX = 128
DIGEST_SHOWN = 12
RANDOM_SHOWN = 8
FRACTIONS = ("mae_reduction", "codebook_usage", "prior_gain")


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
    pick = _Picker(numbers)
    keeps = list(numbers.curve("mae"))
    distance = next(item["name"] for item in numbers.metrics if item["name"].endswith("_random_tokens"))
    distance = distance.removesuffix("_random_tokens")
    block = read_provenance(generation_url)
    environment = next(item["protocol"]["environment"] for item in numbers.metrics if item["name"] == "mae")
    return {
        "title": title,
        "corpus": corpus.name,
        "created": block["created"].replace("T", " ").replace("+00:00", " UTC"),
        "distance": distance,
        "num_tokens": tokens.num_tokens,
        "vocab_size": tokens.vocab_size,
        "size_px": numbers.metrics[0]["protocol"]["preprocess"]["size"],
        "keeps": keeps,
        "most": keeps[-1],
        "cards": _cards(pick, keeps, distance, samples.keep[-1]),
        "quality_charts": _quality_charts(numbers, distance),
        "token_charts": _token_charts(numbers),
        "training_charts": _training_charts(numbers),
        "reconstructions": _reconstruction_rows(read_grid(reconstruction_url), corpus, keeps),
        "bits": {keep: pick("bits_per_image", keep) for keep in keeps if keep in numbers.curve("bits_per_image")},
        "sample_keeps": samples.keep,
        "samples": _sample_rows(samples, sample_store, config),
        "sample_axis": "class" if (sample_store.labels() >= 0).any() else "caption",
        "random_pictures": [
            _picture(png) for each in read_grid(generation_url)[:RANDOM_SHOWN] for png in each.png.values()
        ],
        "random_keep": next(item["k"] for item in numbers.metrics if item["name"] == f"{distance}_random_tokens"),
        "small_sample": any(item["protocol"].get("distance", {}).get("small_sample") for item in numbers.metrics),
        "rows": pick.rows(),
        "lineage": _lineage([reconstruction_url, generation_url]),
        "settings": [(name, json.dumps(recipe, indent=2, sort_keys=True)) for name, recipe in settings],
        "environment": {**environment, **block["environment"], "flextok": __version__},
    }


class _Picker:
    """Numbers ready to show, each with the anchor of its row in the table of all numbers."""

    def __init__(self, numbers: EvaluationResult):
        self._numbers = numbers

    def __call__(self, name: str, k: int | None = None) -> dict[str, Any]:
        for row in self.rows():
            if row["name"] == name and row["k"] == k:
                return row
        raise KeyError(f"{name} at k={k}")

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "anchor": f"number-{index}",
                "name": item["name"],
                "k": item["k"],
                "value": item["value"],
                "text": _shown(item["name"], item["value"]),
                "error": item.get("standard_error"),
                "protocol": json.dumps(item["protocol"], indent=2, sort_keys=True),
                "small_sample": item["protocol"].get("distance", {}).get("small_sample", False),
                "raw": item,
            }
            for index, item in enumerate(self._numbers.metrics)
        ]


def _shown(name: str, value: float) -> str:
    """A number for reading; metrics.json and the table's `value` attribute have all its digits."""
    if name in FRACTIONS:
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cards(pick: _Picker, keeps: Sequence[int], distance: str, sample_keep: int) -> list[dict[str, Any]]:
    """The summary: a label, one or two numbers, and what they mean."""
    mae = pick("mae", keeps[-1])["raw"]["protocol"]
    decoder = mae["decoder"]
    images = mae["data"]["images"]
    how = f"{images} held-out images, {decoder['steps']} steps, decoder guidance {decoder['decoder_guidance']:g}"
    usage = pick("codebook_usage")["raw"]["protocol"]
    loss = pick("prior_loss_bits")["raw"]["protocol"]
    sampler = pick(f"{distance}_samples", sample_keep)["raw"]["protocol"]
    return [
        {
            "label": f"Pixel error (MAE), K={keeps[0]} → K={keeps[-1]}",
            "numbers": [pick("mae", keeps[0]), pick("mae", keeps[-1])],
            "between": "→",
            "hint": f"mean |a − b| on a 0–1 scale; {how}",
        },
        {
            "label": f"PSNR in dB, K={keeps[0]} → K={keeps[-1]}",
            "numbers": [pick("psnr", keeps[0]), pick("psnr", keeps[-1])],
            "between": "→",
            "hint": "higher is closer; mean of the images' own values",
        },
        {
            "label": "Fall of the pixel error",
            "numbers": [pick("mae_reduction")],
            "between": "",
            "hint": f"from {keeps[0]} to {keeps[-1]} tokens",
        },
        {
            "label": "Samples | random tokens",
            "numbers": [pick(f"{distance}_samples", sample_keep), pick(f"{distance}_random_tokens", sample_keep)],
            "between": "|",
            "hint": f"{distance} to held-out images at K={sample_keep}, {sampler['distance']['images']} of each; lower is nearer",
        },
        {
            "label": "Prior: loss | entropy, bits a token",
            "numbers": [pick("prior_loss_bits"), pick("token_entropy_bits")],
            "between": "|",
            "hint": f"{loss['images']} held-out images; below the entropy of the histograms = structure was learned",
        },
        {
            "label": "Codebook in use",
            "numbers": [pick("codebook_usage")],
            "between": "",
            "hint": f"of {usage['vocabulary']:,} ids, over {usage['tokens_counted']:,} tokens",
        },
        {
            "label": "Bytes a token: stored | log2 of the vocabulary | entropy",
            "numbers": [pick(f"{name}_bytes_per_token") for name in ("column", "vocabulary", "entropy")],
            "between": "|",
            "hint": "the compressed column of ids; with keys, hashes and labels the files take "
            f"{pick('stored_bytes_per_token')['text']}",
        },
    ]


def _quality_charts(numbers: EvaluationResult, distance: str) -> list[Chart]:
    def curve(name: str, label: str, colour: int) -> Line:
        values = numbers.curve(name)
        return Line(label, list(values), list(values.values()), colour)

    def limit(name: str) -> Level:
        return Level("limit of the latents", numbers.value(name))

    axis = "tokens kept, K"
    baseline = numbers.curve(f"{distance}_random_tokens")
    return [
        Chart("Pixel error (MAE)", axis, [curve("mae", "reconstructions", 1)], [limit("latents_mae")],
              "lower is better", log2_x=True, from_zero=True),
        Chart("PSNR, dB", axis, [curve("psnr", "reconstructions", 1)], [limit("latents_psnr")],
              "higher is better", log2_x=True),
        Chart(f"{distance}", axis,
              [curve(distance, "reconstructions", 1), curve(f"{distance}_samples", "samples of the prior", 2)],
              [Level(f"random tokens, K={keep}", value, 4) for keep, value in baseline.items()],
              "distance of the set to held-out images; lower is nearer", log2_x=True, from_zero=True),
    ]  # fmt: skip


def _token_charts(numbers: EvaluationResult) -> list[Chart]:
    axis = "position in the sequence"
    series = {item["name"]: item for item in numbers.series}

    def line(name: str, label: str, colour: int) -> Line:
        return Line(label, series[name]["at"], series[name]["values"], colour, markers=len(series[name]["at"]) <= 32)

    entropies = [
        line("train_entropy_by_position", "entropy of train ids", 3),
        line("val_entropy_by_position", "entropy of held-out ids", 4),
        line("prior_loss_by_position", "prior's held-out loss", 2),
    ]
    usage = [line("codebook_usage_by_position", "distinct ids / vocabulary", 1)]
    rates = [
        Line(label, list(curve), list(curve.values()), colour)
        for colour, label, name in (
            (3, "plain: log2 of the vocabulary", "bits_per_image"),
            (1, "entropy of the train ids", "entropy_bits_per_image"),
        )
        for curve in [numbers.curve(name)]
    ]
    return [
        Chart("Bits a token", axis, entropies, note="the gap is what the prior has learned", from_zero=True),
        Chart("Codebook usage", axis, usage, note="on train tokens", from_zero=True),
        Chart("Bits an image", "tokens kept, K", rates, note="each position coded alone", log2_x=True, from_zero=True),
    ]


def _training_charts(numbers: EvaluationResult) -> list[Chart]:
    titles = {
        "latents": "Stage 0 (latents)",
        "tokenizer": "Tokenizer, flow loss",
        "prior": "Prior, nats a token",
    }
    charts = []
    for what, title in titles.items():
        losses = {item["name"].split("/")[1]: item for item in numbers.series if item["name"].startswith(f"{what}/")}
        lines = [
            Line(
                {"train": "training", "val": "held out"}[split],
                item["at"],
                item["values"],
                colour,
                markers=split == "val",
            )
            for split, colour, item in ((split, 1 + (split == "val"), item) for split, item in losses.items())
        ]
        if lines:
            charts.append(Chart(title, "step", lines))
    return charts


def _reconstruction_rows(grid: list[StoredPictures], corpus: Corpus, keeps: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "caption": _class_name(corpus, stored.label) or stored.key,
            "pictures": [_picture(stored.png[k]) for k in (ORIGINAL, *keeps, LATENTS)],
        }
        for stored in grid
    ]


def _class_name(corpus: Corpus, label: int | None) -> str | None:
    classes = corpus.classes or []
    return classes[label] if label is not None and 0 <= label < len(classes) else None


def _sample_rows(samples: SamplesResult, store: TokenStore, config: ReportConfig) -> list[dict[str, Any]]:
    """A row for each class or caption: its first sample at each K, then more samples at the largest."""
    groups: dict[tuple[int, str], list[str]] = {}
    for key, label, text in zip(store.keys(), store.labels().tolist(), store.texts(), strict=True):
        caption = text or (f"class {label}" if label >= 0 else "no condition")
        groups.setdefault((label, caption), []).append(key)
    rows = []
    for (_, caption), keys in itertools.islice(sorted(groups.items()), config.max_classes):
        growing = [_sample(samples, keep, keys[0]) for keep in samples.keep]
        more = [_sample(samples, samples.keep[-1], key) for key in keys[1 : config.samples_per_class]]
        rows.append({"caption": caption, "growing": growing, "more": more})
    return rows


def _sample(samples: SamplesResult, keep: int, key: str) -> str:
    return _picture(storage.read_bytes(image_url(samples.url, keep, key)))


def _picture(png: bytes) -> str:
    """A PNG as a data URI, shrunk where it is larger than the page shows it."""
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    if max(image.size) > THUMBNAIL_PX:
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, format="PNG")
        png = file.getvalue()
    return "data:image/png;base64," + base64.b64encode(png).decode()


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
