"""What the pages of stages show, read from what the stages made: pictures, curves, tables. Knows nothing of Dagster.

A page is built after its stage has its result, and only where there are pages. Pictures are files of at most
`MAX_PICTURE_BYTES`: they are kept in Dagster's records with every materialization.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flextok import storage
from flextok.provenance import read_provenance
from flextok.runtime.compute import ComputeConfig
from pipelines.stage import Made, Page, Pictures, StageRun, TableRow
from pipelines.thumbnails import THUMBNAIL_PX, small_file, thumbnail

if TYPE_CHECKING:
    import numpy as np

    from flextok.data.corpus.pictures import Picture
    from flextok.data.corpus.reader import Corpus
    from flextok.data.tokens import TokenRow, TokenStore
    from flextok.evaluate.results import EvaluationResult
    from flextok.evaluate.sampling import SamplesResult

SHARD_PICTURES = 16
GRID_COLUMNS = 4
# Pictures that do not decode are passed over, but not without end.
MOST_LOOKED_AT = 64
GRID_ROWS = 6
CAPTION_LENGTH = 80
SPARKS, SPARK_COLUMNS = "▁▂▃▄▅▆▇█", 32
SECONDS_PER_HOUR = 3600


def image_shards(run: StageRun, made: Made) -> Page:
    """The first pictures of the split that decode, and the bytes of its shards.

    Its images are those that were added to what was there, or all where none were.
    """
    from flextok.data.corpus.reader import Corpus

    corpus = Corpus.open(_url(made))
    return Page(
        pictures=_first_pictures(corpus),
        size_bytes=sum(shard.bytes for shard in corpus.shards),
        images=corpus.manifest["added"] or corpus.num_samples,
    )


def training(stage: str, run: StageRun, made: Made) -> Page:
    """The losses over the steps of the training `stage`, as the report draws them; nothing of a model taken over."""
    from flextok.evaluate.report.histories import read_history
    from flextok.evaluate.report.training import loss_chart

    url = _url(made)
    history = read_history(stage, url)
    losses, chart = history.losses(), loss_chart(history)
    return Page(
        curve=chart.file() if chart is not None else None,
        texts={f"{each.name.split('/')[1]}/curve": sparkline(each.values) for each in losses},
        numbers={"steps": losses[0].at[-1], **_training_numbers(url)} if losses else {},
        size_bytes=storage.total_bytes(url),
        workers=max(run.recipe.compute.train_workers, 1),
    )


def _training_numbers(url: str) -> dict[str, int | float]:
    """Steps that were done, the one whose weights are published, and hours of all workers' devices."""
    facts = read_provenance(url).get("training", {})
    names = {"steps": "steps", "step": "published_step", "device_hours": "training_device_hours"}
    return {
        shown: _significant(facts[name]) if name == "device_hours" else facts[name]
        for name, shown in names.items()
        if name in facts
    }


def reference(run: StageRun, made: Made) -> Page:
    """How many images there are, and their bytes."""
    from flextok.evaluate.reference import Reference

    url = _url(made)
    images, workers = Reference.open(url).images["images"], _decoding_workers(run.recipe.compute)
    return Page(size_bytes=storage.total_bytes(url), images=images, workers=workers)


def reconstructions(run: StageRun, made: Made) -> Page:
    """Some originals beside what the fewest to the most tokens make of them, and all metrics over K."""
    from flextok.evaluate.results import read_evaluation

    url = _url(made)
    result = read_evaluation(url)
    table = over_k(result)
    data = next(item["protocol"]["data"] for item in result.metrics if "data" in item["protocol"])
    return Page(
        pictures=_reconstructed_pictures(url),
        table=table,
        size_bytes=storage.total_bytes(url),
        images=data["images"] * len(table),
        workers=_decoding_workers(run.recipe.compute),
    )


def token_shards(run: StageRun, made: Made) -> Page:
    """Bytes of an image."""
    from flextok.data.tokens import read_manifest

    counts = read_manifest(_url(made))["counts"]
    return Page(
        numbers={"bytes_per_image": round(counts["bytes"] / max(counts["rows"], 1), 1)},
        size_bytes=counts["bytes"],
        workers=run.recipe.compute.tokenize_actors[1],
    )


def text_features(run: StageRun, made: Made) -> Page:
    """Bytes of an image's captions."""
    from flextok.data.text_features.store import read_manifest

    counts = read_manifest(_url(made))["counts"]
    return Page(
        numbers={"bytes_per_image": round(counts["bytes"] / max(counts["rows"], 1), 1)},
        size_bytes=counts["bytes"],
        workers=run.recipe.compute.tokenize_actors[1],
    )


def samples(run: StageRun, made: Made) -> Page:
    """The first samples at each number of tokens.

    Their bytes are counted on a local disk only: a store would have to list hundreds of thousands of pictures.
    """
    from flextok.data.tokens import TokenStore
    from flextok.evaluate.sampling import open_samples

    url = _url(made)
    stored, _ = open_samples(url)
    return Page(
        pictures=_sampled_pictures(url, stored, TokenStore.open(url)),
        size_bytes=storage.total_bytes(url) if storage.is_local(url) else None,
        images=stored.num * len(stored.keep),
        workers=_decoding_workers(run.recipe.compute),
    )


def fid(run: StageRun, made: Made) -> Page:
    """All distances over K."""
    from flextok.evaluate.results import read_evaluation

    url = _url(made)
    result = read_evaluation(url)
    table = over_k(result)
    distance = result.metrics[0]["protocol"]["distance"]
    # The samples at each K and as many images of random tokens, against the held-out ones.
    images = distance["images"] * (len(table) + 1) + _reference_images(result)
    workers = _decoding_workers(run.recipe.compute)
    return Page(table=table, size_bytes=storage.total_bytes(url), images=images, workers=workers)


def _reference_images(result: "EvaluationResult") -> int:
    """Of the numbers that have a reference; 0 where none has."""
    distances = [item["protocol"]["distance"] for item in result.metrics]
    return max((each["reference"]["images"] for each in distances if "reference" in each), default=0)


def report(run: StageRun, made: Made) -> Page:
    """Where the HTML page is."""
    return Page(
        links={"report": run.workspace.resolve(made.numbers["html"])},
        size_bytes=storage.total_bytes(_url(made)),
        workers=_decoding_workers(run.recipe.compute),
    )


def spent(page: Page, compute: ComputeConfig, duration_s: float) -> dict[str, float]:
    """What a stage took: images a second of its whole duration, hours of machines, and their price.

    accelerator_hours = duration x workers x compute.gpus_per_worker, where workers ask for GPUs. Else
    cpu_hours = duration x CPUs: all that this machine may use, since an asset has it for itself, or on a cluster
    workers x compute.threads (1 where that is null). cost = either x compute.price_per_hour, where that is set.
    All are estimates: workers that start late or end early count in full.
    """
    found: dict[str, float] = {}
    if page.images and duration_s > 0:
        found["images_per_s"] = _significant(page.images / duration_s)
    gpus = page.workers * compute.gpus_per_worker
    cpus = page.workers * (compute.threads or 1) if compute.on_cluster else compute.cpus()
    hours = duration_s / SECONDS_PER_HOUR * (gpus or cpus)
    if hours:
        found["accelerator_hours" if gpus else "cpu_hours"] = _significant(hours)
        if compute.price_per_hour is not None:
            found["cost"] = _significant(hours * compute.price_per_hour)
    return found


def over_k(result: "EvaluationResult") -> list[TableRow]:
    """A row for each number of tokens, ascending, with every number that was measured there, but for those of slices."""
    from flextok.evaluate.slices import SLICE

    whole = (item for item in result.metrics if SLICE not in item["protocol"])
    names = dict.fromkeys(item["name"] for item in whole if item["k"] is not None)
    curves = {name: result.curve(name) for name in names}
    keeps = sorted(set(itertools.chain.from_iterable(curves.values())))
    return [{"K": keep, **{name: curve.get(keep) for name, curve in curves.items()}} for keep in keeps]


def sparkline(values: Sequence[float]) -> str:
    """A curve as one line of text, with its first and last value."""
    low, high = min(values), max(values)
    places = [index * (len(values) - 1) // (SPARK_COLUMNS - 1) for index in range(SPARK_COLUMNS)]
    shown = values if len(values) <= SPARK_COLUMNS else [values[place] for place in places]
    heights = [(value - low) / (high - low) if high > low else 0.0 for value in shown]
    sparks = "".join(SPARKS[round(height * (len(SPARKS) - 1))] for height in heights)
    return f"{sparks} {values[0]:.4g} → {values[-1]:.4g}"


def _url(made: Made) -> str:
    assert made.url is not None  # only stages that leave files have such pages
    return made.url


def _decoding_workers(compute: ComputeConfig) -> int:
    return compute.tokenize_actors[1] if compute.on_cluster else 1


def _first_pictures(corpus: "Corpus") -> Pictures | None:
    from flextok.evaluate.images import contact_sheet

    found = list(itertools.islice(_decodable(corpus), SHARD_PICTURES))
    if not found:
        return None
    crops = [crop for _, crop in found]
    rows = [crops[start : start + GRID_COLUMNS] for start in range(0, len(crops), GRID_COLUMNS)]
    captions = tuple(_caption(picture, corpus.classes) for picture, _ in found)
    return Pictures(small_file(contact_sheet(rows)), f"The first {len(found)} pictures", captions)


def _decodable(corpus: "Corpus") -> "Iterator[tuple[Picture, np.ndarray]]":
    """The first pictures and their thumbnails, without those that do not decode."""
    from flextok.data.corpus.crops import Undecodable, read_crops
    from flextok.data.corpus.pictures import grouped, shard_pictures

    shards = (shard_pictures(corpus.url, shard, corpus.index_sha256(shard)) for shard in corpus.shards)
    for group in grouped(itertools.islice(itertools.chain.from_iterable(shards), MOST_LOOKED_AT)):
        crops = read_crops(group.url, [picture.range for picture in group.pictures], THUMBNAIL_PX)
        for picture, found in zip(group.pictures, crops, strict=True):
            if not isinstance(found, Undecodable):
                yield picture, found.pixels[0]


def _reconstructed_pictures(url: str) -> Pictures | None:
    from flextok.evaluate.grid import LATENTS, ORIGINAL, read_grid
    from flextok.evaluate.images import contact_sheet

    grid = read_grid(url)[:GRID_ROWS]
    if not grid:
        return None
    columns = sorted(grid[0].png, key=lambda k: (k == LATENTS, k))
    names = {ORIGINAL: "original", LATENTS: "latents without tokens"}
    sheet = contact_sheet([[thumbnail(stored.png[k]) for k in columns] for stored in grid])
    title = "Columns: " + ", ".join(names.get(k, f"K={k}") for k in columns)
    return Pictures(small_file(sheet), title, tuple(_short(stored.key) for stored in grid))


def _sampled_pictures(url: str, stored: "SamplesResult", store: "TokenStore") -> Pictures | None:
    from flextok.evaluate.images import contact_sheet
    from flextok.evaluate.samples.layout import image_url

    keeps, chosen = stored.keep, [store[row] for row in range(min(GRID_ROWS, stored.pictures))]
    if not chosen:
        return None
    sheet = contact_sheet(
        [[thumbnail(storage.read_bytes(image_url(url, keep, row.key))) for keep in keeps] for row in chosen]
    )
    title = "Columns: " + ", ".join(f"K={keep}" for keep in keeps)
    return Pictures(small_file(sheet), title, tuple(_caption(row, None) for row in chosen))


def _caption(sample: "Picture | TokenRow", classes: Sequence[str] | None) -> str:
    """The text of a picture, else the name of its class, else its key."""
    label = sample.label
    if not sample.text and classes and label is not None and 0 <= label < len(classes):
        return _short(classes[label])
    return _short(sample.text or (sample.key if label is None else f"class {label}"))


def _short(text: str) -> str:
    return text if len(text) <= CAPTION_LENGTH else text[: CAPTION_LENGTH - 1] + "…"


def _significant(value: float) -> float:
    return float(f"{value:.3g}")
