"""Reconstructions of held-out images at each number of kept tokens, and how far they are from the originals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from flextok.data.corpus.reader import Corpus
from flextok.data.images import preprocess, to_model, to_uint8
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig, keep_counts
from flextok.evaluate.decoding import decode_ids, open_tokenizer
from flextok.evaluate.features import distance_name, load_extractor
from flextok.evaluate.grid import GRID, LATENTS, ORIGINAL, PictureGrid, parquet_bytes
from flextok.evaluate.images import ImageBatch, choose_keys, stream_images
from flextok.evaluate.metrics import PIXEL_METRICS, pixel_metrics
from flextok.evaluate.protocol import (
    IN_MEMORY,
    SAME_IMAGES,
    decoder_record,
    distance_record,
    environment_record,
    evaluation_device,
    images_record,
)
from flextok.evaluate.results import EvaluationResult, Metric, write_evaluation
from flextok.evaluate.statistics import FeatureStatistics, frechet_distance
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.progress import track
from flextok.runtime.storage_errors import storage_errors


@storage_errors("evaluate {tokenizer_url} on {corpus_url} into {parent_url}")
def evaluate_reconstruction(
    tokenizer_url: str, corpus_url: str, parent_url: str, config: EvaluationConfig
) -> EvaluationResult:
    """Decode images of a corpus split at each K and measure them; stored in `parent_url/<digest>/`.

    Metrics by K: `mae`, `mse`, `psnr` (see `PIXEL_METRICS`) and the distance of the set (`distance_name`), all against
    the same images after the same crop. `latents_mae`, `latents_mse`, `latents_psnr`, with no K, are those of the
    latents decoded directly: no tokenizer on these latents does better. `mae_reduction` is the fall of the mean MAE from
    the smallest to the largest K, as a fraction. Files: `images.parquet` (the pixel metrics of
    each image), `grid.parquet` (PNG of some images; k 0 is the original, -1 the latents), `figures/reconstructions.png`.
    """
    device = evaluation_device()
    extractor = load_extractor(config.extractor, config.extractor_input_px, device)
    tokenizer, dtype = open_tokenizer(tokenizer_url, device, config)
    corpus = Corpus.open(corpus_url)
    keeps = keep_counts(config.keep, tokenizer.num_tokens)
    size_px = tokenizer.config.image_size
    available = corpus.index("key")["key"].to_list()
    keys = choose_keys(available, config.max_images)
    distance_keys = choose_keys(keys, config.distance_images)
    if len(distance_keys) < 2:
        raise UsageError(f"expected at least 2 images in {corpus_url} to evaluate on, found {len(distance_keys)}")

    table = _Table()
    grid = PictureGrid(keys[: config.grid_images])
    statistics = {k: FeatureStatistics.empty(extractor.width) for k in (ORIGINAL, *keeps)}
    in_distance = set(distance_keys)
    with track("reconstruct", len(keys) * len(keeps), "images") as task:
        for batch in stream_images(corpus, keys, size_px, config.batch_size):
            chosen = np.array([key in in_distance for key in batch.keys])
            ids, through_latents = _encode(tokenizer, batch, device)
            decoded = {ORIGINAL: batch.images_BHWC, LATENTS: through_latents}
            table.add(batch, LATENTS, through_latents)
            for keep in keeps:
                decoded[keep] = decode_ids(tokenizer, ids, keep, batch.keys, config)
                table.add(batch, keep, decoded[keep])
                task.advance(len(batch))
            for k, gathered in statistics.items():
                if chosen.any():
                    gathered.add(extractor(decoded[k][chosen]))
            for k, pictures in decoded.items():
                grid.add(batch.keys, batch.labels, k, pictures)

    protocol = {
        "data": images_record(f"{corpus.name}/{corpus.split}", corpus.digest, keys, len(available)),
        "reference": SAME_IMAGES,
        "preprocess": preprocess(size_px),
        "file_format": IN_MEMORY,
        "tokenizer": tokenizer.digest,
        "environment": environment_record(device, dtype),
    }
    metrics = table.metrics(protocol, {**protocol, "decoder": decoder_record(config, dtype)}, keeps)
    reference = {
        "kind": SAME_IMAGES,
        **images_record(f"{corpus.name}/{corpus.split}", corpus.digest, distance_keys, len(available)),
    }
    for keep in keeps:
        record = {
            **protocol,
            "decoder": decoder_record(config, dtype),
            "keep": keep,
            "distance": distance_record(extractor.record, statistics[keep].count, reference),
        }
        distance = frechet_distance(statistics[ORIGINAL], statistics[keep])
        metrics.append(Metric(distance_name(extractor.name), distance, record, keep))
    files = {"images.parquet": table.to_parquet(), GRID: grid.to_parquet()}
    if grid.keys:
        files["figures/reconstructions.png"] = grid.sheet([ORIGINAL, *keeps, LATENTS])
    recipe = config.model_dump(mode="json", exclude={"samples", "batch_size"})
    return write_evaluation("reconstructions", parent_url, metrics, [], [tokenizer_url, corpus_url], recipe, files)


@torch.inference_mode()
def _encode(tokenizer: Tokenizer, batch: ImageBatch, device: str) -> tuple[torch.Tensor, np.ndarray]:
    """Token ids of a batch, and its images after the latents alone."""
    latents = tokenizer.encode_images(to_model(batch.images_BHWC).to(device))
    return tokenizer.encode_latents(latents), to_uint8(tokenizer.images_from_latents(latents))


class _Table:
    """Pixel metrics of every image at every K, in long form."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._labels: list[int | None] = []
        self._k: list[int] = []
        self._values: dict[str, list[float]] = {name: [] for name in PIXEL_METRICS}

    def add(self, batch: ImageBatch, k: int, images_BHWC: np.ndarray) -> None:
        """Measure a batch decoded at `k`."""
        self._keys += batch.keys
        self._labels += batch.labels
        self._k += [k] * len(batch)
        for name, values in pixel_metrics(images_BHWC, batch.images_BHWC).items():
            self._values[name] += values.tolist()

    def metrics(self, latents_protocol: dict[str, Any], protocol: dict[str, Any], keeps: Sequence[int]) -> list[Metric]:
        """Means over the images, of the latents alone and at each K."""
        found = []
        k = np.array(self._k)
        for name, definition in PIXEL_METRICS.items():
            values = np.array(self._values[name])
            found.append(_mean(f"latents_{name}", values[k == LATENTS], {**latents_protocol, "definition": definition}))
            for keep in keeps:
                record = {**protocol, "keep": keep, "definition": definition}
                found.append(_mean(name, values[k == keep], record, keep))
        mae = np.array(self._values["mae"])
        few, many = keeps[0], keeps[-1]
        record = {**protocol, "keep": [few, many], "definition": f"1 - mae at K={many} / mae at K={few}"}
        found.append(Metric("mae_reduction", float(1 - mae[k == many].mean() / mae[k == few].mean()), record))
        return found

    def to_parquet(self) -> bytes:
        """Columns key, label, k, mae, mse, psnr."""
        k = pa.array(self._k, pa.int32())
        columns = {"key": self._keys, "label": pa.array(self._labels, pa.int32()), "k": k, **self._values}
        return parquet_bytes(pa.table(columns))


def _mean(name: str, values: np.ndarray, protocol: dict[str, Any], k: int | None = None) -> Metric:
    return Metric(name, float(values.mean()), protocol, k, float(values.std(ddof=1) / np.sqrt(len(values))))
