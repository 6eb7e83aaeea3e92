"""How near sampled images come to held-out ones as a set, beside images of random tokens as the baseline."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from flextok.data.corpus.reader import Corpus
from flextok.data.images import preprocess
from flextok.data.tokens import TokenStore
from flextok.digests import digest_of
from flextok.errors import UsageError
from flextok.evaluate.conditions import condition_numbers
from flextok.evaluate.config import GenerationConfig
from flextok.evaluate.decoding import decode_ids, decoding_dtype, dtype_name
from flextok.evaluate.grid import GRID, ORIGINAL, PictureGrid, Shown, shown
from flextok.evaluate.images import ImageBatch, choose_keys, stream_images
from flextok.evaluate.measure import ImageSets, Measure, Measured, Pictures
from flextok.evaluate.parts import KEEPS, Parts, cut
from flextok.evaluate.protocol import IN_MEMORY, corpus_record, decoder_record, environment_record, evaluation_device
from flextok.evaluate.reference import read_reference
from flextok.evaluate.results import EvaluationResult, Series, write_evaluation
from flextok.evaluate.samples.drawing import batch_ranges
from flextok.evaluate.samples.features import gathered_features
from flextok.evaluate.sampling import open_samples, read_images
from flextok.evaluate.sweep import Point, Sweep, grid_points
from flextok.evaluate.swept_samples import Drawn, SweptSamples
from flextok.model.load import load_tokenizer, tokenizer_outline
from flextok.model.rng import uniform_for
from flextok.provenance import read_provenance
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.lock import locked
from flextok.runtime.progress import track
from flextok.runtime.spread import spread
from flextok.runtime.storage_errors import storage_errors

HELD_OUT = "held-out images, after the tokenizer's crop"
RANDOM_TOKENS = -2
"""The set of images of random tokens, in place of a number of tokens."""
RANDOM_PICTURES = 8
"""Images of random tokens kept for the report."""


@storage_errors("evaluate {samples_url} against {corpus_url} into {parent_url}", keeps=KEEPS)
def evaluate_generation(
    samples_url: str,
    corpus_url: str,
    tokenizer_url: str,
    parent_url: str,
    config: GenerationConfig,
    compute: ComputeConfig | None = None,
    reference_url: str | None = None,
) -> EvaluationResult:
    """Compare sets of samples with the images of a corpus split; stored in `parent_url/<digest>/`.

    Here or, where `compute` has the address of a cluster, by workers on its nodes. Features of the images are read from the
    reference set at `reference_url` where it is of those that are chosen here; those of samples without pictures are read
    as they were gathered when the samples were made.

    For each of `config.set_metrics`: `<number>_samples` by K, and `<number>_random_tokens` at the largest K: as many
    images decoded with the same settings from ids drawn uniformly from the vocabulary. A prior that learned nothing would
    score as they do. For each of `config.sample_metrics`: `<metric>_samples` by K and `<metric>_originals`. With
    `config.sweep`: the curves of all metrics over a grid of settings (`flextok.evaluate.sweep`). File: `grid.parquet`, some of
    the images of random tokens as pictures.
    """
    config = config.part(GenerationConfig)
    device = evaluation_device(compute)
    dtype = decoding_dtype(config, device)
    sets = ImageSets(config, evaluation_device())
    tokenizer = tokenizer_outline(tokenizer_url)
    samples, recipe = open_samples(samples_url)
    store = TokenStore.open(samples_url)
    if store.tokenizer != tokenizer.digest:
        raise UsageError(
            f"expected samples of tokenizer {tokenizer.digest[:12]}, found those of {store.tokenizer[:12]} in {samples_url}"
        )
    corpus = Corpus.open(corpus_url)
    available = corpus.index("key")["key"].to_list()
    reference_keys = choose_keys(available, config.distance_images)
    keys = store.keys()[: config.distance_images]
    if min(len(reference_keys), len(keys)) < 2:
        raise UsageError(f"expected at least 2 samples and 2 images, found {len(keys)} and {len(reference_keys)}")
    sets.require(len(keys), samples_url)
    if config.sample_metrics:
        samples.require_pictures(len(keys), "evaluation.sample_metrics")
    sets.require(len(reference_keys), corpus_url)

    size_px = tokenizer.config.image_size
    reference = read_reference(reference_url, sets, corpus, reference_keys, size_px) if reference_url else None
    if reference is not None:
        sets.take(ORIGINAL, reference)
    measured_before = samples.pictures < len(keys)
    if measured_before:
        for keep, gathered in gathered_features(samples_url, recipe, sets, len(keys)).items():
            sets.take(keep, gathered)
    to_measure = [RANDOM_TOKENS] if measured_before else [*samples.keep, RANDOM_TOKENS]
    grid, widest = PictureGrid(keys[:RANDOM_PICTURES]), samples.keep[-1]
    to_look_at = reference_keys if reference is None else []
    total = len(to_look_at) + len(keys) * len(to_measure)
    points, sweep = [], None
    if config.sweep is not None:
        points = grid_points(config.sweep, config, samples.keep, store.num_tokens, True)
        sweep = Sweep(config.sweep, points, sets, None)
    originals = cut(available, config.batch_size, to_look_at)
    others: list[Item] = [(k, part) for k in to_measure for part in cut(keys, config.batch_size)]
    for temperature in dict.fromkeys(point.temperature for point in points):
        others += [Drawn(temperature, rows) for rows in batch_ranges(range(len(keys)), config.batch_size)]
    made_by = [
        config.content(),
        samples.digest,
        corpus.digest,
        digest_of(originals),
        digest_of(keys),
        config.batch_size,
        sets.records(),
        device,
        dtype_name(dtype),
    ]
    parts = Parts(parent_url, made_by, len(originals) + len(others), _to_plain, _from_plain)
    to_do = [key for index in parts.missing if index < len(originals) for key in originals[index]]
    images = stream_images(corpus, to_do, size_px, config.batch_size)
    items: Iterable[Item] = itertools.chain(
        ((ORIGINAL, batch) for batch in images),
        (others[index - len(originals)] for index in parts.missing if index >= len(originals)),
    )
    arguments = (tokenizer_url, samples_url, config, widest, points, frozenset(grid.keys), device, dtype)
    with (
        locked(parts.url),
        track("sample distances", total + len(keys) * len(points), "images") as task,
        spread("a comparing worker", SetMeasurer, arguments, compute) as measure,
    ):
        for found in parts.results(measure(items)):
            for measured, pictures in found:
                sets.add(measured)
                grid.take(widest, pictures)
                task.advance(measured.in_sets)

    reference_record = {"kind": HELD_OUT, **corpus_record(corpus, reference_keys, len(available))}
    protocol = {
        "preprocess": preprocess(size_px),
        "file_format": IN_MEMORY,
        "tokenizer": tokenizer.digest,
        "environment": environment_record(device, dtype_name(dtype)),
    }
    drawn_protocol = {
        **protocol,
        "file_format": IN_MEMORY if measured_before else "PNG",
        "prior": next(item["digest"] for item in read_provenance(samples_url)["inputs"] if item["kind"] == "prior"),
        "samples": samples.digest,
        "sampler": recipe["sampler"],
        "decoder": recipe["decoder"],
    }
    random_protocol: dict[str, Any] = {
        **protocol,
        "tokens": f"each id uniform in 0..{store.vocab_size - 1}, seed {config.seed}",
        "decoder": decoder_record(tokenizer, config, dtype_name(dtype)),
        "keep": widest,
    }
    metrics = []
    for metric in sets.metrics:
        for keep in samples.keep:
            metrics.append(sets.compare(metric, keep, {**drawn_protocol, "keep": keep}, reference_record, "_samples"))
        metrics.append(sets.compare(metric, RANDOM_TOKENS, random_protocol, reference_record, "_random_tokens"))
    held_out = {**protocol, "reference": reference_record}
    metrics += condition_numbers(
        samples, corpus, keys, reference_keys, config, size_px, drawn_protocol, held_out, compute
    )
    series: list[Series] = []
    if sweep is not None:
        swept_protocol = {**drawn_protocol, "file_format": IN_MEMORY}
        best, series = sweep.results(swept_protocol, reference_record, tokenizer, config, dtype_name(dtype), "_samples")
        metrics += best
    inputs = [samples_url, corpus_url, tokenizer_url]
    inputs += [reference_url] if reference is not None and reference_url else []
    files = {GRID: grid.to_parquet()}
    made = write_evaluation("generation", parent_url, metrics, series, inputs, config.content(), files)
    parts.remove()
    return made


def random_ids(store: TokenStore, keys: Sequence[str], seed: int) -> torch.Tensor:
    """Ids drawn uniformly from the vocabulary, shaped as rows of `store`; a stream of its own for each key."""
    shape = (store.num_tokens,) if store.codebooks == 1 else (store.num_tokens, store.codebooks)
    uniform = uniform_for(seed, [f"random tokens {key}" for key in keys], shape)
    return (uniform.double() * store.vocab_size).long().clamp(max=store.vocab_size - 1)


Item = tuple[int, ImageBatch | Sequence[str]] | Drawn
"""A batch of the set with that number, or samples drawn for a sweep."""


class SetMeasurer:
    """What a worker holds to measure parts of the sets: originals, samples as pictures, and images of random tokens."""

    def __init__(
        self,
        tokenizer_url: str,
        samples_url: str,
        config: GenerationConfig,
        widest: int,
        points: Sequence[Point],
        grid_keys: frozenset[str],
        device: str,
        dtype: torch.dtype,
    ):
        self._tokenizer = load_tokenizer(tokenizer_url, device, dtype)
        self._samples_url, self._store = samples_url, TokenStore.open(samples_url)
        self._measure = Measure(ImageSets(config, device))
        self._swept = SweptSamples(samples_url, self._store, points, config, device)
        self._config, self._widest, self._grid_keys = config, widest, grid_keys

    def __call__(self, item: Item) -> list[tuple[Measured, list[Shown]]]:
        """What a batch of a set gives to the numbers, the set being ORIGINAL, RANDOM_TOKENS or a number of tokens, and its
        pictures for the grid; of samples drawn for a sweep, that of the sets at all points."""
        if isinstance(item, Drawn):
            return [(self._measure(made), []) for made in self._swept.pictures(self._tokenizer, item)]
        k, batch = item
        if isinstance(batch, ImageBatch):
            return [(self._measure(Pictures(k, batch.images_BHWC)), [])]
        if k != RANDOM_TOKENS:
            return [(self._measure(Pictures(k, read_images(self._samples_url, k, batch))), [])]
        ids = random_ids(self._store, batch, self._config.seed)
        images = decode_ids(self._tokenizer, ids, self._widest, batch, self._config)
        return [(self._measure(Pictures(k, images)), shown(self._grid_keys, batch, [None] * len(batch), images))]


def _to_plain(found: list[tuple[Measured, list[Shown]]]) -> Any:
    return [[measured.to_plain(), pictures] for measured, pictures in found]


def _from_plain(plain: Any) -> list[tuple[Measured, list[Shown]]]:
    return [(Measured(**measured), pictures) for measured, pictures in plain]
