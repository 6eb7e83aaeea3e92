"""The actor that makes pictures of samples: holds the tokenizer, and keeps pictures, or features of pictures that it does
not keep.

What is made of a shard of tokens: `images/k<K>/<key>.png`, `features/k<K>/<shard>.safetensors` (see `Gathered`) and, when
all of these are there, `decoded/<shard>.json`, which says so.
"""

import concurrent.futures
import functools
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from flextok import storage
from flextok.data.corpus.reader import Shard
from flextok.data.images import to_png
from flextok.data.rejects import Reject
from flextok.data.tokens import ShardRecord
from flextok.data.tokens.files import flat_rows, read_row_group, read_shard_footer
from flextok.errors import FlextokError, IntegrityError
from flextok.evaluate.config import SamplingConfig, SetComparisonConfig
from flextok.evaluate.decoding import decode_ids
from flextok.evaluate.gathered import Gathered
from flextok.evaluate.measure import ImageSets
from flextok.evaluate.samples.drawing import batch_ranges
from flextok.evaluate.samples.layout import FILE_THREADS, features_url, image_url
from flextok.model.load import load_tokenizer
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.storage_errors import telling_storage_errors
from flextok.tokenize.fitness import Proof
from flextok.tokenize.tasks import Finished, Task
from flextok.tokenize.worker import ShardWorker


@dataclass(frozen=True)
class DecodeTask(Task):
    """A shard of samples, of the first of which pictures are kept and features gathered."""

    keeps: list[int]
    shown: int
    """Samples whose pictures are kept."""
    measured: int
    """Samples whose features are gathered."""
    fingerprint: str
    """Hash of all that decides what is made."""

    @classmethod
    def from_json(cls, text: str) -> "DecodeTask":
        """The task that `task_to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "source": Shard(**values["source"])})


@dataclass(frozen=True)
class Decoded:
    """What was made of a shard, as its file says."""

    fingerprint: str
    pictures: dict[str, list[int]]
    """By K: bytes of the picture of each sample that has one."""
    features: dict[str, str]
    """By K: sha256 of the file of features, where there is one."""

    def lost_features(self, folder: str, shard: str) -> list[str]:
        """The K whose features are missing or not as they were written."""
        return [
            keep for keep, sha256 in self.features.items() if not _has(features_url(folder, int(keep), shard), sha256)
        ]

    def lost_pictures(self, keep: str, keys: Iterable[str], sizes: Mapping[str, int]) -> list[str]:
        """Which of the samples `keys` of the shard have no picture at `keep` tokens, or one of another size than it had;
        `sizes` are the bytes of all files in the pictures' folder."""
        return [key for key, size in zip(keys, self.pictures[keep], strict=False) if sizes.get(f"{key}.png") != size]


class SampleDecoder(ShardWorker[DecodeTask, "Decoding"]):
    """Turns shards of samples into pictures and features, see `ShardWorker`."""

    parse = staticmethod(DecodeTask.from_json)

    def __init__(
        self,
        tokenizer_url: str,
        digest: str,
        config: dict[str, Any],
        sets: dict[str, Any] | None,
        device: str,
        dtype: str,
        threads: int | None,
        monitor: Any = None,
        members: bytes = b"",
        proof: Proof | None = None,
    ):
        self._model_turn = threading.Lock()
        load = functools.partial(_ready_decoding, tokenizer_url, digest, config, sets, device, dtype, threads)
        super().__init__(load, monitor, members, proof)

    def _finished(self, task: DecodeTask) -> Finished | None:
        return finished_decoding(task)

    def _attempt(self, task: DecodeTask) -> tuple[ShardRecord, list[Reject], str]:
        url, model = task.corpus, self.model
        gathered = {keep: Gathered(model.kept) for keep in task.keeps} if task.measured else {}
        pictures: dict[str, list[int]] = {str(keep): [] for keep in task.keeps}
        done, told = 0, time.monotonic()
        with self._model_turn, concurrent.futures.ThreadPoolExecutor(FILE_THREADS) as pool:
            for keys, ids in model.batches(task):
                shown, measured = (max(0, count - done) for count in (task.shown, task.measured))
                for keep in task.keeps:
                    images = model.images(ids, keep, keys)
                    if measured:
                        gathered[keep].add(len(images[:measured]), model.features(images[:measured]))
                    files = list(map(to_png, images[:shown]))
                    list(pool.map(storage.write_bytes, [image_url(url, keep, key) for key in keys[:shown]], files))
                    pictures[str(keep)] += map(len, files)
                done += len(keys)
                told = self._tell(task, done, told)
        hashes = {}
        for keep, found in gathered.items():
            place = features_url(url, keep, task.name)
            storage.write_bytes(place, found.to_bytes())
            hashes[str(keep)] = storage.sha256_file(place)
        storage.write_json(task.dest, asdict(Decoded(task.fingerprint, pictures, hashes)))
        return _record(task), [], ""


class Decoding:
    """A tokenizer, and what gives features of pictures where some are wanted."""

    def __init__(self, tokenizer: Tokenizer, config: SamplingConfig, sets: ImageSets | None):
        self._tokenizer, self._config, self._sets = tokenizer, config, sets

    @property
    def kept(self) -> Mapping[str, frozenset[str]]:
        """What is kept of features."""
        return self._sets.kept if self._sets is not None else {}

    def batches(self, task: DecodeTask) -> Iterator[tuple[list[str], torch.Tensor]]:
        """Keys and ids, int64 [B, L] or [B, L, C], of the samples of a shard of which something is made."""
        shard = read_shard_footer(task.source.url)
        if shard.content_sha256 != task.source.sha256:
            raise IntegrityError(f"found {task.source.url} written over by another job; run the same command again")
        shape = (shard.meta.num_tokens,) if shard.meta.codebooks == 1 else (shard.meta.num_tokens, shard.meta.codebooks)
        left = max(task.shown, task.measured)
        for group in range(len(shard.row_groups)):
            table = read_row_group(shard.url, group, ["key", "tokens"]).slice(0, max(0, left))
            left -= table.num_rows
            ids = flat_rows(table["tokens"], shard.meta.ids_per_row).astype(np.int64).reshape(-1, *shape)
            keys = table["key"].to_pylist()
            for rows in batch_ranges(range(len(keys)), self._config.batch_size):
                yield keys[rows.start : rows.stop], torch.from_numpy(ids[rows.start : rows.stop])

    def images(self, ids: torch.Tensor, keep: int, keys: Sequence[str]) -> np.ndarray:
        """Pictures of samples, uint8 [B, H, W, 3]."""
        return decode_ids(self._tokenizer, ids, keep, keys, self._config)

    def features(self, images_BHWC: np.ndarray) -> dict[str, np.ndarray]:
        """Features of pictures, by what gives them."""
        assert self._sets is not None, "features are wanted of nothing"
        return self._sets.features(images_BHWC)


def finished_decoding(task: DecodeTask) -> Finished | None:
    """The record of a task when what it makes is there; None when it must be made (again).

    Features are read and hashed. Of pictures, of which there may be hundreds of thousands, this does not look at any: see
    `lacks_pictures`.
    """
    made = read_decoded(task)
    if made is None or made.lost_features(task.corpus, task.name):
        return None
    return _record(task), []


def lacks_pictures(task: DecodeTask, keys: Sequence[str], sizes: Mapping[int, Mapping[str, int]]) -> bool:
    """Whether a picture of a task is not there, or has another size than it had. `keys` are those of its samples, `sizes`
    the bytes of all files in the folder of each K."""
    made = read_decoded(task)
    return made is None or any(made.lost_pictures(str(keep), keys, sizes[keep]) for keep in task.keeps)


def read_decoded(task: DecodeTask) -> Decoded | None:
    """What the file of a task says; None where there is none, or it is another task's or damaged."""
    try:
        made = Decoded(**storage.read_json(task.dest))
    except (FileNotFoundError, FlextokError, TypeError, UnicodeDecodeError):
        return None
    return made if made.fingerprint == task.fingerprint else None


def _has(url: str, sha256: str) -> bool:
    try:
        return storage.sha256_file(url) == sha256
    except FileNotFoundError:
        return False


def _record(task: DecodeTask) -> ShardRecord:
    return ShardRecord(task.name, task.source.samples, "", task.source.sha256, "", 0, 0)


def _ready_decoding(
    tokenizer_url: str,
    digest: str,
    values: dict[str, Any],
    sets: dict[str, Any] | None,
    device: str,
    dtype: str,
    threads: int | None,
) -> Decoding:
    """The tokenizer, which must be that of the driver, and the extractor. Raises FlextokError where one cannot be had."""
    if threads is not None:
        torch.set_num_threads(threads)
    with telling_storage_errors(f"load {tokenizer_url}"):
        tokenizer = load_tokenizer(tokenizer_url, device, getattr(torch, dtype))
    if tokenizer.digest != digest:
        raise IntegrityError(f"expected tokenizer {digest[:12]} at {tokenizer_url}, found {tokenizer.digest[:12]}")
    comparison = ImageSets(SetComparisonConfig(**sets), device) if sets is not None else None
    return Decoding(tokenizer, SamplingConfig(**values), comparison)
