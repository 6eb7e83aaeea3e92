"""Training samples by index: crops of a corpus, the latents of crops, rows of a token store."""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from flextok.data.corpus.crops import View, Window
from flextok.data.corpus.pictures import Pictures, crops_of
from flextok.data.corpus.reader import Corpus
from flextok.data.tokens import TokenStore
from flextok.train.alignment import Alignment
from flextok.train.parallel import DistContext

CACHE_BYTES = 2 << 30
ENCODE_BATCH = 64


class CorpusImages:
    """uint8 crops [B,3,size,size] of a corpus, read at random; kept in memory when all of them fit in `cache_bytes`."""

    def __init__(self, corpus: Corpus, size_px: int, cache_bytes: int = CACHE_BYTES):
        self._pictures = Pictures(corpus)
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
            views = windows if windows is not None else itertools.repeat("center")
            crops = np.stack(list(self._pool.map(self._load, indices, views)))
        else:
            missing = np.unique(indices[~self._have[indices]])
            for index, crop in zip(missing, self._pool.map(self._load, missing), strict=True):
                self._crops[index] = crop
            self._have[missing] = True
            crops = self._crops[indices]
        return {"images": torch.from_numpy(crops).permute(0, 3, 1, 2)}

    def _load(self, index: int, view: View | Window = "center") -> np.ndarray:
        ((_, crop),) = crops_of([self._pictures[int(index)]], self._size_px, view)
        return crop


def model_images(images_uint8: Tensor) -> Tensor:
    """uint8 [B,3,H,W] as float32 in [-1, 1]: `images.to_model` for a batch that is already on its device."""
    return images_uint8.float() / 127.5 - 1


class CachedLatents:
    """Latents [B,c,h,w] of every crop, computed once: stage 0 is frozen and gives the same latents each time.

    So is the teacher of an `alignment`, whose features are kept beside them. With `flipped`, so much is kept of each crop
    flipped, too, in rows behind those of the crops as they are.
    """

    in_memory = True

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

    `weights` (float64 [N], mean 1) say how often each is drawn.
    """

    in_memory = True

    def __init__(self, store: TokenStore, weights: np.ndarray | None = None):
        self.weights = weights
        self._ids = store.ids()
        self._labels = store.labels()

    def __len__(self) -> int:
        return len(self._ids)

    def fetch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The rows at `indices`; `rows` are the indices themselves."""
        return {
            "ids": torch.from_numpy(self._ids[indices].astype(np.int64)),
            "labels": torch.from_numpy(self._labels[indices]),
            "rows": torch.from_numpy(indices),
        }
