"""From samples to rows of tokens: decode threads ahead of the model, batches of one fixed shape."""

import collections
import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from flextok.data import images
from flextok.data.config import ImageLimits
from flextok.data.corpus import Sample
from flextok.data.rejects import Reject
from flextok.data.tokens import token_table
from flextok.model.tokenizer import Tokenizer
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.length import kept_lengths
from flextok.tokenize.prefetch import Prefetcher
from flextok.tokenize.views import crop_view

BATCHES_AHEAD = 2
# Sharding has judged the pictures by the corpus' own limits; here only what cannot be decoded is refused.
ANY_SIZE = ImageLimits(min_side=1, max_aspect=1e9, max_pixels=170_000_000, max_bytes=2**30)


# Parameters below which a call is so short that threads wait for each other longer than they work (measured: a model of
# 2 M on a busy machine of 2 cores made 1,250 images/s with one thread, 60 with two).
SMALL_MODEL = 20_000_000


def model_threads(tokenizer: Tokenizer, threads: int) -> int:
    """How many of an actor's threads the model should use on a CPU; the decoders use them all."""
    parts = (tokenizer.latents, tokenizer.encoder)
    size = sum(parameter.numel() for part in parts for parameter in part.parameters())
    return threads if size >= SMALL_MODEL else 1


@dataclasses.dataclass(frozen=True)
class DecodedSample:
    """A sample ready for the model: `crops` uint8 [V, S, S, 3], one for each view, and its columns but `view`."""

    crops: np.ndarray
    columns: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Batch:
    """`pixels` uint8 [batch_size, S, S, 3], of which the first rows are filled, and the columns of those rows."""

    pixels: np.ndarray
    columns: list[dict[str, Any]]


def decode_sample(sample: Sample, size_px: int, config: TokenizeConfig) -> DecodedSample | Reject:
    """The crops of a sample, or why there are none. Runs in decode threads.

    Bytes that differ from the hash taken at sharding are refused even when they decode: their pixels are not the
    corpus' pixels.
    """
    sha256 = hashlib.sha256(sample.image).digest()
    recorded = sample.meta.get("sha256")
    if recorded is not None and recorded != sha256.hex():
        return Reject(sample.key, "broken_image", "its bytes differ from the hash recorded in the corpus")
    try:
        decoded = images.decode(sample.image, ANY_SIZE)
    except images.ImageError as error:
        return Reject(sample.key, error.reason, error.detail)
    crops = np.stack([crop_view(decoded.rgb, size_px, view) for view in config.views])
    columns = {
        "key": sample.key,
        "label": sample.label,
        "text": sample.text,
        "width": decoded.width,
        "height": decoded.height,
        "sha256": sha256,
    }
    return DecodedSample(crops, columns)


class Encoder:
    """A tokenizer with decode threads before it, for one shard after another."""

    def __init__(self, tokenizer: Tokenizer, config: TokenizeConfig, batch_size: int, threads: int):
        self.tokenizer, self.config, self.batch_size = tokenizer, config, batch_size
        self.size_px = tokenizer.config.image_size
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def batches(self, samples: Iterable[Sample], rejects: list[Reject]) -> Prefetcher[Batch]:
        """Decoded batches of `samples`, prepared ahead; undecodable ones go to `rejects`."""
        return Prefetcher(self._assembled(self._decoded(samples), rejects), BATCHES_AHEAD)

    def tables(self, batches: Iterable[Batch], schema: pa.Schema) -> Iterator[pa.Table]:
        """Token rows of `batches`, in order. The next batch is given to the device before a result is fetched."""
        launched: tuple[Batch, torch.Tensor] | None = None
        for batch in batches:
            ids = self.encode(batch.pixels)
            if launched is not None:
                yield self._rows(*launched, schema)
            launched = batch, ids
        if launched is not None:
            yield self._rows(*launched, schema)

    def encode(self, pixels: np.ndarray) -> torch.Tensor:
        """uint8 [B, S, S, 3] -> ids [B, L] or [B, L, C], on the tokenizer's device."""
        return self.tokenizer.tokenize(self.model_input(pixels))

    def model_input(self, pixels: np.ndarray) -> torch.Tensor:
        """`images.to_model`, moved to the device while still small."""
        moved = torch.from_numpy(pixels).to(self.tokenizer.device)
        return moved.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1

    def _rows(self, batch: Batch, ids: torch.Tensor, schema: pa.Schema) -> pa.Table:
        rows = len(batch.columns)
        kept = ids[:rows, : self.config.keep] if self.config.keep is not None else ids[:rows]
        columns: dict[str, Any] = {name: [row[name] for row in batch.columns] for name in batch.columns[0]}
        names = [f"{row['key']}/{row['view']}" for row in batch.columns]
        columns["length"] = kept_lengths(self.tokenizer, self.config.length, batch.pixels[:rows], kept, names)
        return token_table(schema, kept.cpu().numpy(), columns)

    def _decoded(self, samples: Iterable[Sample]) -> Iterator[DecodedSample | Reject]:
        """Samples decoded by the pool in their order, a bounded number at a time."""
        ahead = BATCHES_AHEAD * self.batch_size
        pending: collections.deque[concurrent.futures.Future[DecodedSample | Reject]] = collections.deque()
        try:
            for sample in samples:
                pending.append(self._pool.submit(decode_sample, sample, self.size_px, self.config))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _assembled(self, decoded: Iterator[DecodedSample | Reject], rejects: list[Reject]) -> Iterator[Batch]:
        """Batches of exactly `batch_size`; the rest of the last one is black.

        One shape for all calls means one kernel choice and no recompilation, and that a row's ids do not depend on
        which other job or attempt computed it.
        """
        columns: list[dict[str, Any]] = []
        pixels = self._blank()
        for sample in decoded:
            if isinstance(sample, Reject):
                rejects.append(sample)
                continue
            for crop, view in zip(sample.crops, self.config.views, strict=True):
                pixels[len(columns)] = crop
                columns.append({**sample.columns, "view": view})
                if len(columns) == self.batch_size:
                    yield Batch(pixels, columns)
                    pixels, columns = self._blank(), []
        if columns:
            yield Batch(pixels, columns)

    def _blank(self) -> np.ndarray:
        return np.zeros((self.batch_size, self.size_px, self.size_px, 3), np.uint8)
