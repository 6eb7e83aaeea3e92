"""Reconstructions of held-out images at each number of kept tokens, and how far they are from the originals."""

from collections.abc import Iterator, Sequence
from typing import Any

from flextok.data.corpus.documents import sample_documents
from flextok.data.corpus.reader import Corpus
from flextok.data.images import preprocess
from flextok.digests import digest_of
from flextok.errors import UsageError
from flextok.evaluate.config import ReconstructionConfig, keep_counts
from flextok.evaluate.contents import CONTENTS, Contents
from flextok.evaluate.decoding import decoding_dtype, dtype_name
from flextok.evaluate.extremes import EXTREMES, Extremes
from flextok.evaluate.grid import GRID, LATENTS, ORIGINAL, PictureGrid
from flextok.evaluate.held_out import held_out_record
from flextok.evaluate.images import choose_keys, stream_images
from flextok.evaluate.measure import ImageSets, ImageTable
from flextok.evaluate.parts import KEEPS, Parts, cut
from flextok.evaluate.perturbation import Perturbed, grid_of, require_neighbours
from flextok.evaluate.protocol import (
    IN_MEMORY,
    SAME_IMAGES,
    corpus_record,
    decoder_record,
    environment_record,
    evaluation_device,
)
from flextok.evaluate.rate import Rates, token_bytes
from flextok.evaluate.reconstructor import Reconstructed, Reconstructor
from flextok.evaluate.reference import read_reference
from flextok.evaluate.regions import regions_of
from flextok.evaluate.results import IMAGES, OF_LATENTS, EvaluationResult, Metric, write_evaluation
from flextok.evaluate.seeds import other_seeds, seed_spreads
from flextok.evaluate.slices import SLICE, Slices, curves_by_slice
from flextok.evaluate.sweep import FIRST_SET, Sweep, grid_points
from flextok.metrics.pixel import MAE_REDUCTION
from flextok.model.load import tokenizer_outline
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.lock import locked
from flextok.runtime.progress import track
from flextok.runtime.spread import spread
from flextok.runtime.storage_errors import storage_errors


@storage_errors("evaluate {tokenizer_url} on {corpus_url} into {parent_url}", keeps=KEEPS)
def evaluate_reconstruction(
    tokenizer_url: str,
    corpus_url: str,
    parent_url: str,
    config: ReconstructionConfig,
    compute: ComputeConfig | None = None,
    reference_url: str | None = None,
) -> EvaluationResult:
    """Decode images of a corpus split at each K and measure them; stored in `parent_url/<digest>/`.

    Here or, where `compute` has the address of a cluster, by workers on its nodes. Features of the originals are read from
    the reference set at `reference_url` where it is of these images.

    Metrics by K: those of images (`config.metrics`) and of sets (`config.set_metrics`), all against the same images after
    the same crop. `latents_<metric>`, with no K, are those of the latents decoded directly: no tokenizer on these latents
    does better. `mae_reduction` is the fall of the mean MAE from the smallest to the largest K, as a fraction. With
    `config.codecs`: `<codec>_<metric>` from as many bytes, and the curves of both over bytes (`flextok.evaluate.rate`). With
    `config.perturbation`: `pfd_<share>_<rank>_<extractor>` (`flextok.evaluate.perturbation`). With `config.sweep`: the curves of
    all metrics over a grid of settings (`flextok.evaluate.sweep`). With `config.seeds`: `<number>_seed_spread` by K
    (`flextok.evaluate.seeds`). With `config.recognisers`: `<metric>_<recogniser>` of words and faces
    (`flextok.evaluate.contents`). With `config.slices`: `<number>_<column>_<value>` of each metric of images and of contents
    (`flextok.evaluate.slices`). Files:
    `images.parquet` (the metrics of each image), `grid.parquet` (PNG of some images; k 0 is the original, -1 the latents),
    `extremes.parquet` (PNG of the best and worst by each metric, at the most tokens), `figures/reconstructions.png`, with
    recognisers `contents.parquet`.
    """
    config = config.part(ReconstructionConfig)
    device = evaluation_device(compute)
    dtype = decoding_dtype(config, device)
    sets, table = ImageSets(config, evaluation_device()), ImageTable(config.metrics, config.weights)
    tokenizer = tokenizer_outline(tokenizer_url)
    size_px = tokenizer.config.image_size
    table.require(size_px)
    corpus = Corpus.open(corpus_url)
    keeps = keep_counts(config.keep, tokenizer.num_tokens)
    available = corpus.index("key")["key"].to_list()
    keys = choose_keys(available, config.max_images)
    set_keys = choose_keys(keys, config.distance_images)
    if len(set_keys) < 2:
        raise UsageError(f"expected at least 2 images in {corpus_url} to evaluate on, found {len(set_keys)}")
    sets.require(len(set_keys), corpus_url)
    exchanged = grid_of(config.perturbation)
    require_neighbours(tokenizer, exchanged)
    bytes_at = {keep: token_bytes(tokenizer, keep) for keep in keeps} if config.codecs else {}
    rates = Rates(config.codecs, table.metrics, bytes_at) if config.codecs else None
    about = sample_documents(corpus, keys) if config.recognisers or config.slices else {}
    slices = Slices(config.slices, about, corpus)
    regions = regions_of(about, size_px) if config.recognisers else {}
    contents = Contents(config.recognisers, regions)
    reference = read_reference(reference_url, sets, corpus, set_keys, size_px) if reference_url else None
    if reference is not None:
        sets.take(ORIGINAL, reference)
    points = grid_points(config.sweep, config, keeps, tokenizer.num_tokens, False) if config.sweep else []
    seeded = other_seeds(config.seeds, config, keeps)
    swept = ImageTable(config.metrics, config.weights) if points or seeded else table
    sweep = Sweep(config.sweep, points, sets, swept) if config.sweep else None
    held_out = held_out_record(tokenizer_url, corpus, keys, config.allow_training_images)

    grid, extremes = PictureGrid(keys[: config.grid_images]), Extremes(table.metrics)
    batches = cut(available, config.batch_size, keys)
    made_by = [
        config.content(),
        tokenizer.digest,
        digest_of(batches),
        sets.records(),
        reference is None,
        device,
        dtype_name(dtype),
        *([contents.records(), digest_of(regions)] if config.recognisers else []),
    ]
    parts = Parts(parent_url, made_by, len(batches), Reconstructed.to_plain, Reconstructed.from_plain)
    to_do = [key for index in parts.missing for key in batches[index]]
    in_sets = frozenset(set_keys), reference is None
    decoded_too = [*points, *seeded]
    in_grid = frozenset(grid.keys)
    arguments = (tokenizer_url, config, keeps, decoded_too, *in_sets, in_grid, bytes_at, regions, device, dtype)
    with (
        locked(parts.url),
        track("reconstruct", len(keys) * (len(keeps) + len(decoded_too)), "images") as task,
        spread("a reconstructing worker", Reconstructor, arguments, compute) as reconstruct,
    ):
        images = stream_images(corpus, to_do, size_px, config.batch_size)
        for found in parts.results(reconstruct(images)):
            extremes.add(found.extremes)
            contents.add(found.recognised)
            if rates is not None:
                rates.add(found.rated)
            for measured, shown in found.sets:
                sets.add(measured)
                (swept if measured.k <= FIRST_SET else table).add(measured)
                grid.take(measured.k, shown)
                task.advance(len(measured.keys) if measured.k > ORIGINAL or measured.k <= FIRST_SET else 0)

    protocol = {
        "data": {**corpus_record(corpus, keys, len(available)), **held_out},
        "reference": SAME_IMAGES,
        "preprocess": preprocess(size_px),
        "file_format": IN_MEMORY,
        "tokenizer": tokenizer.digest,
        "environment": environment_record(device, dtype_name(dtype)),
    }
    decoded = {**protocol, "decoder": decoder_record(tokenizer, config, dtype_name(dtype))}
    reference_record = {"kind": SAME_IMAGES, **corpus_record(corpus, set_keys, len(available))}
    metrics = []
    for metric in table.metrics:
        metrics.append(table.mean(metric, LATENTS, protocol, prefix=OF_LATENTS))
        metrics += [table.mean(metric, keep, {**decoded, "keep": keep}) for keep in keeps]
    sliced = list(_sliced(table, slices, metrics, keeps))
    of_contents = list(contents.numbers(keeps, protocol, decoded, slices))
    metrics += _mae_reduction(table, keeps, decoded)
    for metric in sets.metrics:
        metrics += [
            sets.compare(metric, keep, {**decoded, "keep": keep}, reference_record, in_pairs=True) for keep in keeps
        ]
    metrics += seed_spreads(seeded, metrics, sets, swept, config.seed)
    perturbed, series = Perturbed(sets, exchanged, config.seed).numbers(keeps[-1], metrics, decoded, reference_record)
    metrics += perturbed
    if rates is not None:
        metrics += rates.numbers(protocol)
        series += rates.curves(table, decoded)
    metrics += [*sliced, *of_contents]
    series += curves_by_slice([each for each in (*sliced, *of_contents) if SLICE in each.protocol])
    if sweep is not None:
        best, curves = sweep.results(protocol, reference_record, tokenizer, config, dtype_name(dtype))
        metrics, series = [*metrics, *best], [*series, *curves]
    files = {IMAGES: table.to_parquet(), GRID: grid.to_parquet()}
    if config.recognisers:
        files[CONTENTS] = contents.to_parquet()
    if grid.keys:
        files[EXTREMES] = extremes.to_parquet()
        files["figures/reconstructions.png"] = grid.sheet([ORIGINAL, *keeps, LATENTS])
    inputs = [tokenizer_url, corpus_url, *([reference_url] if reference is not None and reference_url else [])]
    made = write_evaluation("reconstructions", parent_url, metrics, series, inputs, config.content(), files)
    parts.remove()
    return made


def _sliced(table: ImageTable, slices: Slices, whole: Sequence[Metric], keeps: Sequence[int]) -> Iterator[Metric]:
    """Of the parts of the corpus what `whole` are of all of it: first the latents, then each K, of each metric of `table`."""
    places = [(metric, k) for metric in table.metrics for k in (LATENTS, *keeps)]
    for (metric, k), number in zip(places, whole, strict=True):
        yield from slices.numbers(number, table.keys(k), table.values(metric.name, k))


def _mae_reduction(table: ImageTable, keeps: Sequence[int], protocol: dict[str, Any]) -> list[Metric]:
    """Nothing where MAE is not measured."""
    if "mae" not in [metric.name for metric in table.metrics]:
        return []
    few, many = keeps[0], keeps[-1]
    record = {**protocol, "keep": [few, many], "definition": f"1 - mae at K={many} / mae at K={few}"}
    reduction = float(1 - table.values("mae", many).mean() / table.values("mae", few).mean())
    return [Metric(MAE_REDUCTION.name, reduction, record)]
