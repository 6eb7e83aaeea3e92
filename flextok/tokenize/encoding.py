"""From pictures to rows of tokens: decoders ahead of the model, batches of one fixed shape."""

import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from flextok import storage
from flextok.data import images
from flextok.data.corpus.crops import ByteRange, Crops, Undecodable, crop_span, read_crops, read_span
from flextok.data.corpus.pictures import Group, Picture, grouped
from flextok.data.rejects import Reject
from flextok.data.tokens import token_table
from flextok.errors import IntegrityError
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.ahead import Prefetcher, ahead
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.decoding import Decoders

BATCHES_AHEAD = 2
PICTURES_AHEAD = 64
"""For each decoder: enough for it never to wait. More of them only leave the processor's caches before their turn."""
BYTES_AHEAD = 256 * 2**20
"""Of pictures ahead of the model, stored and decoded, whatever a shard holds."""
READERS = 4
"""For each decoder, where pictures come from afar: latency is waited for by threads, so that no decoder does."""

SMALL_MODEL = 20_000_000
"""Parameters below which a call is so short that threads wait for each other longer than they work (measured: a model of
2 M on a busy machine of 2 cores made 1,250 images/s with one thread, 60 with two)."""


def takes_single_images(tokenizer: Tokenizer) -> bool:
    """Whether a batch goes through the model image by image, as many at once as there are threads; else as a whole.

    So on a CPU, unless the model is small: threads which share one image wait for each other wherever one of them is
    interrupted, its activations stay in the caches, and its ids depend neither on the batch nor on the threads.
    """
    parts = (tokenizer.latents, tokenizer.encoder)
    size = sum(parameter.numel() for part in parts for parameter in part.parameters())
    return tokenizer.device.type == "cpu" and size >= SMALL_MODEL


class Damaged(IntegrityError):
    """A picture's bytes are not those that the corpus recorded."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """`pixels` uint8 [batch_size, S, S, 3], of which the first rows are filled, and the columns of those rows."""

    pixels: np.ndarray
    columns: list[dict[str, Any]]


class Tokens(NamedTuple):
    """`ids` int64 [rows, K] or [rows, K, C], perhaps still being computed on their device; `lengths` uint16 [rows]."""

    ids: torch.Tensor
    lengths: np.ndarray


class Encoder:
    """A tokenizer with decoders before it, for one shard after another.

    `model_threads` is how many of its own threads the model runs in: as many as there are decoders where it takes single
    images. Whole batches run in the caller's thread (0), on a CPU fastest if torch uses no more than that.
    """

    def __init__(self, tokenizer: Tokenizer, config: TokenizeConfig, batch_size: int, decoders: Decoders):
        self.tokenizer, self.config, self.batch_size = tokenizer, config, batch_size
        self.size_px = tokenizer.config.image_size
        self._decoders = decoders
        self._pictures_ahead = PICTURES_AHEAD * decoders.count
        self._readers = ThreadPoolExecutor(READERS * decoders.count, thread_name_prefix="read")
        self.model_threads = decoders.count if takes_single_images(tokenizer) else 0
        self._model = ThreadPoolExecutor(
            self.model_threads or 1, thread_name_prefix="model", initializer=torch.set_num_threads, initargs=(1,)
        )

    def batches(self, pictures: Iterable[Picture], rejects: list[Reject], whole: bool = False) -> Prefetcher[Batch]:
        """Decoded batches of `pictures`, prepared ahead; undecodable ones go to `rejects`.

        With `whole`, raises Damaged at a picture whose bytes are not those of which the hash was recorded.
        """
        return Prefetcher(self._assembled(self._decoded(pictures), rejects, whole), BATCHES_AHEAD)

    def tables(self, batches: Iterable[Batch], schema: pa.Schema) -> Iterator[pa.Table]:
        """Token rows of `batches`, in order. The model has the next batch before a result is waited for."""
        started: tuple[Batch, Iterator[Tokens]] | None = None
        for batch in batches:
            following = batch, self._start(batch)
            if started is not None:
                yield _table(*started, schema)
            started = following
        if started is not None:
            yield _table(*started, schema)

    def encode(self, batch: Batch) -> np.ndarray:
        """Ids of the rows of `batch`."""
        ids, _ = _joined(self._start(batch))
        return ids

    def warm_up(self) -> None:
        """A call on black pictures, in each thread: the first one chooses kernels, and costs more than any other."""
        if self.model_threads:
            list(self._model.map(self._ids, [self._blank(1)] * self.model_threads))
        else:
            self._ids(self._blank(self.batch_size)).cpu()

    def _start(self, batch: Batch) -> Iterator[Tokens]:
        """What the model makes of `batch`, in parts; it has all of them when this returns."""
        names = [f"{row['key']}/{row['view']}" for row in batch.columns]
        if not self.model_threads:
            return iter([self._tokens(batch.pixels, names)])
        rows = range(len(names))
        return self._model.map(
            self._tokens, [batch.pixels[row : row + 1] for row in rows], [names[row : row + 1] for row in rows]
        )

    def _tokens(self, pixels: np.ndarray, names: list[str]) -> Tokens:
        """Of the first pictures in `pixels`, which have `names`."""
        rows = len(names)
        ids = self._ids(pixels)[:rows, : self.config.keep]
        lengths = self.config.length.lengths(self.tokenizer, pixels[:rows], ids, names)
        return Tokens(ids, lengths.astype(np.uint16))

    def _ids(self, pixels: np.ndarray) -> torch.Tensor:
        """uint8 [B, S, S, 3] -> ids [B, L] or [B, L, C], on the tokenizer's device."""
        return self.tokenizer.tokenize(images.to_model(pixels, self.tokenizer.device))

    def _decoded(self, pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Crops | Undecodable]]:
        """Pictures with what the decoders made of them, in their order; a bounded number is ahead."""
        for group, found in ahead(self._begin_decoding, grouped(pictures), depth=1, cost=self._share_ahead):
            yield from zip(group.pictures, found, strict=True)

    def _share_ahead(self, group: Group) -> float:
        """The part of what may be ahead of the model that a group of pictures takes up, stored and decoded."""
        decoded = len(self.config.views) * self.size_px**2 * 3
        size = sum(picture.range.size + decoded for picture in group.pictures)
        return max(len(group.pictures) / self._pictures_ahead, size / BYTES_AHEAD)

    def _begin_decoding(self, group: Group) -> Future[list[Crops | Undecodable]]:
        """What the decoders make of a group of pictures. They read for themselves what is near."""
        ranges = [picture.range for picture in group.pictures]
        if storage.is_local(group.url):
            return self._decoders.submit(read_crops, group.url, ranges, self.size_px, self.config.views)
        return self._readers.submit(self._read_and_decode, group.url, ranges)

    def _read_and_decode(self, url: str, ranges: list[ByteRange]) -> list[Crops | Undecodable]:
        content = read_span(url, ranges)
        return self._decoders.submit(crop_span, content, ranges, self.size_px, self.config.views).result()

    def _assembled(
        self, decoded: Iterator[tuple[Picture, Crops | Undecodable]], rejects: list[Reject], whole: bool
    ) -> Iterator[Batch]:
        """Batches of exactly `batch_size`; the rest of the last one is black.

        One shape for all calls means one kernel choice and no recompilation, and that a row's ids do not depend on
        which other job or attempt computed it.
        """
        columns: list[dict[str, Any]] = []
        pixels = self._blank(self.batch_size)
        for picture, found in decoded:
            if isinstance(found, Undecodable):
                if whole and found.damaged:
                    raise Damaged(f"{picture.key}: {found.detail}")
                rejects.append(Reject(picture.key, found.reason, found.detail))
                continue
            shared = {
                "key": picture.key,
                "label": picture.label,
                "text": picture.text,
                "width": found.width,
                "height": found.height,
                "sha256": found.sha256,
            }
            for crop, view in zip(found.pixels, self.config.views, strict=True):
                pixels[len(columns)] = crop
                columns.append({**shared, "view": view})
                if len(columns) == self.batch_size:
                    yield Batch(pixels, columns)
                    pixels, columns = self._blank(self.batch_size), []
        if columns:
            yield Batch(pixels, columns)

    def _blank(self, rows: int) -> np.ndarray:
        return np.zeros((rows, self.size_px, self.size_px, 3), np.uint8)


def _joined(parts: Iterable[Tokens]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and lengths of all `parts`."""
    found = [(part.ids.cpu().numpy(), part.lengths) for part in parts]
    return np.concatenate([ids for ids, _ in found]), np.concatenate([lengths for _, lengths in found])


def _table(batch: Batch, parts: Iterable[Tokens], schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = {name: [row[name] for row in batch.columns] for name in batch.columns[0]}
    ids, columns["length"] = _joined(parts)
    return token_table(schema, ids, columns)
