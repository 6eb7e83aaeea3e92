"""The actor of a bulk tokenization: holds the tokenizer, turns one shard after another into a Parquet file."""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Generator, Iterable
from typing import Any

import pyarrow as pa
import torch

from flextok import storage
from flextok.data.corpus.pictures import shard_pictures
from flextok.data.rejects import Reject
from flextok.data.tokens import ShardRecord, write_token_shard
from flextok.errors import IntegrityError
from flextok.model.load import load_tokenizer
from flextok.runtime.storage_errors import telling_storage_errors
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.decoding import DecodeProcesses
from flextok.tokenize.encoding import Damaged, Encoder
from flextok.tokenize.fitness import Proof
from flextok.tokenize.tasks import Finished, ShardTask, finished_record, task_from_json
from flextok.tokenize.worker import ShardWorker


class ShardTokenizer(ShardWorker[ShardTask, Encoder]):
    """Turns shards into files of tokens, see `ShardWorker`.

    Ray calls it for two rows at once: while one has the model, the other's pictures are read and decoded ahead.
    """

    parse = staticmethod(task_from_json)

    def __init__(
        self,
        tokenizer_url: str,
        digest: str,
        config: dict[str, Any],
        batch_size: int,
        threads: int,
        device: str,
        monitor: Any = None,
        members: bytes = b"",
        proof: Proof | None = None,
    ):
        self._views = len(config["views"])
        self._model_turn = threading.Lock()
        load = functools.partial(_ready_encoder, tokenizer_url, digest, config, batch_size, threads, device)
        super().__init__(load, monitor, members, proof)

    def _finished(self, task: ShardTask) -> Finished | None:
        return finished_record(task)

    def _attempt(self, task: ShardTask) -> tuple[ShardRecord, list[Reject], str]:
        """Tokenize from the first picture on: a shard that broke is never resumed."""
        try:
            return *self._write(task, whole=True), ""
        except Damaged:
            # Damaged pictures are rejects like others. The shard records what it was really made from, so that it is
            # made again when the corpus is mended.
            found = storage.sha256_file(task.source.url)
        if found == task.source.sha256:
            raise IntegrityError(
                f"expected the same bytes of {task.source.url} at each reading, found others once; check disk and network"
            )
        meta = dataclasses.replace(task.meta, source_sha256=found)
        warning = (
            f"shard {task.name}: its bytes ({found[:12]}) are not the corpus manifest's ({task.source.sha256[:12]})"
        )
        return *self._write(dataclasses.replace(task, meta=meta), whole=False), warning

    def _write(self, task: ShardTask, whole: bool) -> tuple[ShardRecord, list[Reject]]:
        rejects: list[Reject] = []
        pictures = shard_pictures(task.corpus, task.source, task.index_sha256)
        with (
            self.model.batches(pictures, rejects, whole) as batches,
            contextlib.closing(self._in_turn(batches, task)) as tables,
        ):
            record = write_token_shard(task.dest, task.schema, tables, rejects)
        return record, rejects

    def _in_turn(self, batches: Iterable[Any], task: ShardTask) -> Generator[pa.Table, None, None]:
        """Rows of a shard. The model is free again when they are encoded, while the file's end is still on its way."""
        rows, told = 0, time.monotonic()
        with self._model_turn:
            for table in self.model.tables(batches, task.schema):
                rows += table.num_rows
                told = self._tell(task, rows // self._views, told)
                yield table


def _ready_encoder(
    tokenizer_url: str, digest: str, values: dict[str, Any], batch_size: int, threads: int, device: str
) -> Encoder:
    """The tokenizer with its decoders, after a first call. Raises FlextokError where it cannot be had."""
    config = TokenizeConfig(**values)
    decoders = DecodeProcesses(threads)  # they start while the tokenizer is read
    with telling_storage_errors(f"load {tokenizer_url}"):
        tokenizer = load_tokenizer(tokenizer_url, device, getattr(torch, config.dtype))
    if tokenizer.digest != digest:
        raise IntegrityError(f"expected tokenizer {digest[:12]} at {tokenizer_url}, found {tokenizer.digest[:12]}")
    torch.set_num_threads(1)
    encoder = Encoder(tokenizer, config, batch_size, decoders)
    encoder.warm_up()
    return encoder
