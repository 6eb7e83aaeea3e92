"""Reconstructions of held-out images at each number of kept tokens, and how far they are from the originals."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from flextok.data.corpus.reader import Corpus
from flextok.data.images import preprocess, to_model, to_uint8
from flextok.errors import UsageError
from flextok.evaluate.config import ReconstructionConfig, keep_counts
from flextok.evaluate.decoding import decode_ids, open_tokenizer
from flextok.evaluate.grid import GRID, LATENTS, ORIGINAL, PictureGrid
from flextok.evaluate.images import ImageBatch, choose_keys, stream_images
from flextok.evaluate.measure import ImageSets, ImageTable, Pictures, measure
from flextok.evaluate.protocol import (
    IN_MEMORY,
    SAME_IMAGES,
    corpus_record,
    decoder_record,
    environment_record,
    evaluation_device,
)
from flextok.evaluate.results import EvaluationResult, Metric, write_evaluation
from flextok.metrics.pixel import MAE_REDUCTION
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.progress import track
from flextok.runtime.storage_errors import storage_errors


@storage_errors("evaluate {tokenizer_url} on {corpus_url} into {parent_url}")
def evaluate_reconstruction(
    tokenizer_url: str, corpus_url: str, parent_url: str, config: ReconstructionConfig
) -> EvaluationResult:
    """Decode images of a corpus split at each K and measure them; stored in `parent_url/<digest>/`.

    Metrics by K: those of images (`config.metrics`) and of sets (`config.set_metrics`), all against the same images after
    the same crop. `latents_<metric>`, with no K, are those of the latents decoded directly: no tokenizer on these latents
    does better. `mae_reduction` is the fall of the mean MAE from the smallest to the largest K, as a fraction. Files:
    `images.parquet` (the metrics of each image), `grid.parquet` (PNG of some images; k 0 is the original, -1 the latents),
    `figures/reconstructions.png`.
    """
    config = config.part(ReconstructionConfig)
    device = evaluation_device()
    sets, table = ImageSets(config, device), ImageTable(config.metrics)
    tokenizer, dtype = open_tokenizer(tokenizer_url, device, config)
    corpus = Corpus.open(corpus_url)
    keeps = keep_counts(config.keep, tokenizer.num_tokens)
    available = corpus.index("key")["key"].to_list()
    keys = choose_keys(available, config.max_images)
    set_keys = choose_keys(keys, config.distance_images)
    if len(set_keys) < 2:
        raise UsageError(f"expected at least 2 images in {corpus_url} to evaluate on, found {len(set_keys)}")

    grid = PictureGrid(keys[: config.grid_images])
    with track("reconstruct", len(keys) * len(keeps), "images") as task:
        batches = stream_images(corpus, keys, tokenizer.config.image_size, config.batch_size)
        measure(_reconstructions(tokenizer, batches, keeps, set_keys, config, grid, task.advance), sets, table)

    protocol = {
        "data": corpus_record(corpus, keys, len(available)),
        "reference": SAME_IMAGES,
        "preprocess": preprocess(tokenizer.config.image_size),
        "file_format": IN_MEMORY,
        "tokenizer": tokenizer.digest,
        "environment": environment_record(device, dtype),
    }
    decoded = {**protocol, "decoder": decoder_record(tokenizer, config, dtype)}
    reference = {"kind": SAME_IMAGES, **corpus_record(corpus, set_keys, len(available))}
    metrics = []
    for metric in table.metrics:
        metrics.append(table.mean(metric, LATENTS, protocol, prefix="latents_"))
        metrics += [table.mean(metric, keep, {**decoded, "keep": keep}) for keep in keeps]
    metrics += _mae_reduction(table, keeps, decoded)
    for metric in sets.metrics:
        metrics += [sets.compare(metric, keep, {**decoded, "keep": keep}, reference) for keep in keeps]
    files = {"images.parquet": table.to_parquet(), GRID: grid.to_parquet()}
    if grid.keys:
        files["figures/reconstructions.png"] = grid.sheet([ORIGINAL, *keeps, LATENTS])
    inputs = [tokenizer_url, corpus_url]
    return write_evaluation("reconstructions", parent_url, metrics, [], inputs, config.content(), files)


def _reconstructions(
    tokenizer: Tokenizer,
    batches: Iterator[ImageBatch],
    keeps: Sequence[int],
    set_keys: Sequence[str],
    config: ReconstructionConfig,
    grid: PictureGrid,
    advance: Callable[[int], None],
) -> Iterator[Pictures]:
    """Of each batch the originals, its way through the latents alone, and its pictures at each K; some go to `grid`."""
    in_sets = set(set_keys)
    for batch in batches:
        chosen_B = np.array([key in in_sets for key in batch.keys])
        ids, through_latents = _encode(tokenizer, batch)
        made = [
            Pictures(ORIGINAL, batch.images_BHWC, None, chosen_B),
            Pictures(LATENTS, through_latents, batch, np.zeros_like(chosen_B)),
        ]
        for keep in keeps:
            made.append(Pictures(keep, decode_ids(tokenizer, ids, keep, batch.keys, config), batch, chosen_B))
            advance(len(batch))
        for pictures in made:
            grid.add(batch.keys, batch.labels, pictures.k, pictures.images_BHWC)
            yield pictures


@torch.inference_mode()
def _encode(tokenizer: Tokenizer, batch: ImageBatch) -> tuple[torch.Tensor, np.ndarray]:
    """Token ids of a batch, and its images after the latents alone."""
    latents = tokenizer.encode_images(to_model(batch.images_BHWC).to(tokenizer.device))
    return tokenizer.encode_latents(latents), to_uint8(tokenizer.images_from_latents(latents))


def _mae_reduction(table: ImageTable, keeps: Sequence[int], protocol: dict[str, Any]) -> list[Metric]:
    """Nothing where MAE is not measured."""
    if "mae" not in [metric.name for metric in table.metrics]:
        return []
    few, many = keeps[0], keeps[-1]
    record = {**protocol, "keep": [few, many], "definition": f"1 - mae at K={many} / mae at K={few}"}
    reduction = float(1 - table.values("mae", many).mean() / table.values("mae", few).mean())
    return [Metric(MAE_REDUCTION.name, reduction, record)]
