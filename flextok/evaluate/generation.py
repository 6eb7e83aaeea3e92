"""How near sampled images come to held-out ones as a set, beside images of random tokens as the baseline."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from flextok.data.corpus.reader import Corpus
from flextok.data.images import preprocess
from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig
from flextok.evaluate.decoding import decode_ids, open_tokenizer
from flextok.evaluate.features import Extractor, distance_name, load_extractor
from flextok.evaluate.grid import GRID, PictureGrid
from flextok.evaluate.images import choose_keys, stream_images
from flextok.evaluate.protocol import (
    IN_MEMORY,
    decoder_record,
    distance_record,
    environment_record,
    evaluation_device,
    images_record,
)
from flextok.evaluate.results import EvaluationResult, Metric, write_evaluation
from flextok.evaluate.sampling import open_samples, read_images
from flextok.evaluate.statistics import FeatureStatistics, frechet_distance
from flextok.model.rng import uniform_for
from flextok.model.tokenizer import Tokenizer
from flextok.provenance import read_provenance
from flextok.runtime.progress import track
from flextok.runtime.storage_errors import storage_errors

HELD_OUT = "held-out images, after the tokenizer's crop"


@storage_errors("evaluate {samples_url} against {corpus_url} into {parent_url}")
def evaluate_generation(
    samples_url: str, corpus_url: str, tokenizer_url: str, parent_url: str, config: EvaluationConfig
) -> EvaluationResult:
    """Distances of samples to the images of a corpus split; stored in `parent_url/<digest>/`.

    Metrics: `<distance>_samples` by K, and `<distance>_random_tokens` at the largest K: as many images decoded with
    the same settings from ids drawn uniformly from the vocabulary. A prior that learned nothing would score as they do.
    File: `grid.parquet`, some of the latter as pictures.
    """
    device = evaluation_device()
    extractor = load_extractor(config.extractor, config.extractor_input_px, device)
    tokenizer, dtype = open_tokenizer(tokenizer_url, device, config)
    samples, recipe = open_samples(samples_url)
    store = TokenStore.open(samples_url)
    if store.tokenizer != tokenizer.digest:
        raise UsageError(
            f"expected samples of tokenizer {tokenizer.digest[:12]}, found those of {store.tokenizer[:12]} in {samples_url}"
        )
    corpus = Corpus.open(corpus_url)
    size_px = tokenizer.config.image_size
    available = corpus.index("key")["key"].to_list()
    reference_keys = choose_keys(available, config.distance_images)
    keys = store.keys()[: config.distance_images]
    if min(len(reference_keys), len(keys)) < 2:
        raise UsageError(f"expected at least 2 samples and 2 images, found {len(keys)} and {len(reference_keys)}")

    total = len(reference_keys) + len(keys) * (len(samples.keep) + 1)
    with track("sample distances", total, "images") as task:
        reference = FeatureStatistics.empty(extractor.width)
        for batch in stream_images(corpus, reference_keys, size_px, config.batch_size):
            reference.add(extractor(batch.images_BHWC))
            task.advance(len(batch))
        sampled = {}
        for keep in samples.keep:
            pictures = (read_images(samples_url, keep, part) for part in _parts(keys, config.batch_size))
            sampled[keep] = _statistics(extractor, pictures, task.advance)
        widest = samples.keep[-1]
        grid = PictureGrid(keys[: config.grid_images])
        random_images = _random_images(tokenizer, store, keys, widest, config, grid)
        baseline = _statistics(extractor, random_images, task.advance)

    reference_record = {
        "kind": HELD_OUT,
        **images_record(f"{corpus.name}/{corpus.split}", corpus.digest, reference_keys, len(available)),
    }
    prior_digest = next(item["digest"] for item in read_provenance(samples_url)["inputs"] if item["kind"] == "prior")
    protocol = {
        "preprocess": preprocess(size_px),
        "file_format": IN_MEMORY,
        "tokenizer": tokenizer.digest,
        "distance": distance_record(extractor.record, len(keys), reference_record),
        "environment": environment_record(device, dtype),
    }
    name = distance_name(extractor.name)
    metrics = []
    for keep, statistics in sampled.items():
        record = {
            **protocol,
            "file_format": "PNG",
            "prior": prior_digest,
            "samples": samples.digest,
            "sampler": recipe["sampler"],
            "decoder": recipe["decoder"],
            "keep": keep,
        }
        metrics.append(Metric(f"{name}_samples", frechet_distance(reference, statistics), record, keep))
    record = {
        **protocol,
        "tokens": f"each id uniform in 0..{store.vocab_size - 1}, seed {config.seed}",
        "decoder": decoder_record(config, dtype),
        "keep": widest,
    }
    metrics.append(Metric(f"{name}_random_tokens", frechet_distance(reference, baseline), record, widest))
    settings = config.model_dump(mode="json", exclude={"samples", "batch_size", "keep", "max_images", "grid_images"})
    inputs = [samples_url, corpus_url, tokenizer_url]
    return write_evaluation("generation", parent_url, metrics, [], inputs, settings, {GRID: grid.to_parquet()})


def random_ids(store: TokenStore, keys: Sequence[str], seed: int) -> torch.Tensor:
    """Ids drawn uniformly from the vocabulary, shaped as rows of `store`; a stream of its own for each key."""
    shape = (store.num_tokens,) if store.codebooks == 1 else (store.num_tokens, store.codebooks)
    uniform = uniform_for(seed, [f"random tokens {key}" for key in keys], shape)
    return (uniform.double() * store.vocab_size).long().clamp(max=store.vocab_size - 1)


def _random_images(
    tokenizer: Tokenizer, store: TokenStore, keys: Sequence[str], keep: int, config: EvaluationConfig, grid: PictureGrid
) -> Iterator[np.ndarray]:
    for part in _parts(keys, config.batch_size):
        images = decode_ids(tokenizer, random_ids(store, part, config.seed), keep, part, config)
        grid.add(part, [None] * len(part), keep, images)
        yield images


def _statistics(extractor: Extractor, pictures: Iterator[np.ndarray], advance) -> FeatureStatistics:
    gathered = FeatureStatistics.empty(extractor.width)
    for images in pictures:
        gathered.add(extractor(images))
        advance(len(images))
    return gathered


def _parts(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
