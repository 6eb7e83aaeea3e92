"""Training samples by index: crops of a corpus, the latents of crops, rows of a token store."""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from flextok.data.blocks import Blocks
from flextok.data.corpus.crops import View, Window
from flextok.data.corpus.pictures import Picture, Pictures, crops_of
from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore
from flextok.data.tokens.files import flat_rows
from flextok.train.alignment import Alignment
from flextok.train.captions import packed
from flextok.train.parallel import DistContext
from flextok.train.sample_order import Weights, Windows

CACHE_BYTES = 2 << 30
WINDOW_BYTES = 768 << 20
"""Of rows of a token store: 1.4 million images of 256 ids in two bytes each."""
ROW_BYTES = 32
"""Of a row beside its ids: its label, and its places in the orders of two windows."""
CAPTION_BYTES = 160
"""Room for a caption."""
ENCODE_BATCH = 64


class CorpusImages:
    """uint8 crops [B,3,size,size] of a corpus, read at random; kept in memory when all of them fit in `cache_bytes`."""

    def __init__(self, corpus: Corpus, size_px: int, cache_bytes: int = CACHE_BYTES):
        self._pictures = Pictures(corpus)
        self.windows = windows_of(self._pictures.shards)
        self.weights = corpus.sample_weights()
        self._size_px = size_px
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
        self.in_memory = len(self) * self.bytes_each <= cache_bytes
        count = len(self) if self.in_memory else 0
        self._crops = np.empty((count, size_px, size_px, 3), np.uint8)
        self._have = np.zeros(count, bool)

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def bytes_each(self) -> int:
        """Memory of one crop."""
        return self._size_px * self._size_px * 3

    def fetch(self, indices: np.ndarray, windows: Sequence[Window] | None = None) -> dict[str, Tensor]:
        """`images`: the crops at `indices`, of their centres or of one window each, which are always read."""
        if windows is not None or not self.in_memory:
            crops = np.stack(self._load(indices, windows))
        else:
            missing = np.unique(indices[~self._have[indices]])
            for index, crop in zip(missing, self._load(missing), strict=True):
                self._crops[index] = crop
            self._have[missing] = True
            crops = self._crops[indices]
        return {"images": torch.from_numpy(crops).permute(0, 3, 1, 2)}

    def _load(self, indices: np.ndarray, windows: Sequence[Window] | None = None) -> list[np.ndarray]:
        views = windows if windows is not None else itertools.repeat("center")
        return list(self._pool.map(self._crop, self._pictures.at(indices), views))

    def _crop(self, picture: Picture, view: View | Window) -> np.ndarray:
        ((_, crop),) = crops_of([picture], self._size_px, view)
        return crop


def model_images(images_uint8: Tensor) -> Tensor:
    """uint8 [B,3,H,W] as float32 in [-1, 1]: `images.to_model` for a batch that is already on its device."""
    return images_uint8.float() / 127.5 - 1


class CachedLatents:
    """Latents [B,c,h,w] of every crop, computed once: stage 0 is frozen and gives the same latents each time.

    So is the teacher of an `alignment`, whose features are kept beside them. With `flipped`, so much is kept of each crop
    flipped, too, in rows behind those of the crops as they are.
    """

    in_memory, windows = True, None

    def __init__(
        self,
        crops: CorpusImages,
        encode: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        world: DistContext,
        alignment: Alignment | None = None,
        flipped: bool = False,
    ):
        def images(rows: np.ndarray) -> Tensor:
            found = crops.fetch(rows % len(crops))["images"]
            is_flipped = torch.from_numpy(rows >= len(crops)).view(-1, 1, 1, 1)
            return torch.where(is_flipped, found.flip(3), found).to(world.device)

        self.weights, self._count = crops.weights, len(crops)
        self.rows = len(crops) * (2 if flipped else 1)
        """Rows that are kept."""
        latents = torch.zeros(self.rows, *shape)
        self._kept = {"latents": computed_once(latents, lambda rows: encode(model_images(images(rows))).float(), world)}
        if alignment is not None:
            empty = torch.zeros(self.rows, *alignment.shape, dtype=torch.float16)
            self._kept["features"] = computed_once(empty, lambda rows: alignment.features(images(rows)), world)

    def __len__(self) -> int:
        return self._count

    def fetch_views(self, indices: np.ndarray, flips_B: np.ndarray) -> dict[str, Tensor]:
        """`fetch` of samples, of those that `flips_B` says flipped."""
        return self.fetch(indices + flips_B * self._count)

    def fetch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """`latents`, and a teacher's `features`, of rows, which are those of samples at first."""
        rows = torch.from_numpy(indices)
        return {**{name: kept[rows] for name, kept in self._kept.items()}, "rows": rows}


def computed_once(out: Tensor, compute: Callable[[np.ndarray], Tensor], world: DistContext) -> Tensor:
    """`out`, zeros [N,...] on the CPU, filled with what `compute` gives for rows; each member computes a share of them.

    In batches that depend on nothing, so that results are the same bits with any number of members and after a resume.
    """
    starts = range(0, len(out), ENCODE_BATCH)
    for start in starts[world.part(len(starts))]:
        stop = min(start + ENCODE_BATCH, len(out))
        out[start:stop] = compute(np.arange(start, stop)).cpu()
    out.copy_(world.sum(out.to(world.device)))
    return out


class TokenRows:
    """Rows of a token store: `ids` int64 [B,L] or [B,L,C], `labels` int64 [B] (-1 where there is none).

    With `with_texts` their captions too, `texts` as `packed` gives them. `weights` (mean 1) say how often each is drawn.
    Row groups are read as they are needed, and those that were used last kept: about `WINDOW_BYTES`.
    """

    def __init__(self, store: TokenStore, weights: Weights | None = None, with_texts: bool = False):
        store.require_ids()
        self.weights, self._store, self._with_texts = weights, store, with_texts
        groups = [(s, g, rows) for s, shard in enumerate(store.shards) for g, rows in enumerate(shard.row_groups)]
        self._groups = np.array(groups, np.int32).reshape(-1, 3)
        row_bytes = store.meta.ids_per_row * store.meta.number_type.itemsize + ROW_BYTES + with_texts * CAPTION_BYTES
        self._blocks = Blocks(self._groups[:, 2], self._read, WINDOW_BYTES // row_bytes)
        self.windows = windows_of(self._blocks)
        self.in_memory = self.windows is None

    def __len__(self) -> int:
        return len(self._blocks)

    def fetch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The rows at `indices`; `rows` are the indices themselves."""
        codebooks = (self._store.codebooks,) if self._store.codebooks > 1 else ()
        ids = np.empty((len(indices), self._store.num_tokens, *codebooks), np.int64)
        labels = np.empty(len(indices), np.int64)
        texts = np.empty(len(indices), object)
        for places, group, rows in self._blocks.parts(indices):
            ids[places] = group.ids[rows].reshape(len(rows), *ids.shape[1:])
            labels[places] = group.labels[rows]
            if group.texts is not None:
                texts[places] = group.texts.take(pa.array(rows)).to_pylist()
        values = {"ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels), "rows": torch.from_numpy(indices)}
        return {**values, **({"texts": packed(texts.tolist())} if self._with_texts else {})}

    def _read(self, number: int) -> "_RowGroup":
        shard, group, _ = self._groups[number].tolist()
        columns = [self._store.meta.column, "label", *(["text"] if self._with_texts else [])]
        table = self._store.read_row_group(shard, group, columns)
        ids = flat_rows(table[self._store.meta.column], self._store.meta.ids_per_row)
        labels = table["label"].fill_null(-1).to_numpy().astype(np.int32)
        return _RowGroup(ids, labels, table["text"].combine_chunks() if self._with_texts else None)


@dataclass(frozen=True)
class _RowGroup:
    """Rows that are stored together: ids [N, L*C] in the stored dtype, labels int32 [N], captions where they are asked for."""

    ids: np.ndarray
    labels: np.ndarray
    texts: pa.Array | None


def windows_of(blocks: Blocks[Any]) -> Windows | None:
    """The windows in which these blocks are read, None where all of them are kept."""
    return None if blocks.all_fit else Windows(blocks.rows, blocks.most_rows)
