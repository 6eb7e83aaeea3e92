"""The actor of a bulk tokenization: holds the tokenizer, turns one shard after another into a Parquet file."""

import contextlib
import dataclasses
import errno
import threading
import time
from collections.abc import Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pyarrow as pa
import torch

from flextok import storage
from flextok.data.corpus.pictures import shard_pictures
from flextok.data.rejects import Reject
from flextok.data.tokens import ShardRecord, write_token_shard
from flextok.errors import FlextokError, IntegrityError
from flextok.model.load import load_tokenizer
from flextok.runtime.members import unpack_members
from flextok.runtime.memory import keep_freed_memory, peak_memory
from flextok.runtime.storage_errors import FULL, telling_storage_errors
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.decoding import DecodeProcesses
from flextok.tokenize.encoding import Damaged, Encoder
from flextok.tokenize.fitness import Proof
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.tasks import ShardTask, finished_record
from flextok.tokenize.team import Team, row_tasks

ATTEMPTS = 4
LASTING_FAULTS = (*FULL, errno.EROFS)
TELL_EVERY_S = 1.0


class ShardTokenizer:
    """Callable for Ray Data: a row `{task}` in, a row `{outcome}` out, each a line of JSON for each of its shards.

    A fault of one shard is told, not raised. Ray calls it for two rows at once: while one has the model, the other's
    pictures are read and decoded ahead. With a `monitor` the actor is one of a `Team`.
    """

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
        keep_freed_memory(large=True)
        unpack_members(members)
        settings = TokenizeConfig(**config)
        self._views = len(settings.views)
        self._team = Team(monitor) if monitor is not None else None
        self._model_turn = threading.Lock()
        self._encoder: Encoder | None = None
        try:
            if proof is not None:
                proof.give()
            self._encoder = _ready_encoder(tokenizer_url, digest, settings, batch_size, threads, device)
        except FlextokError as fault:
            if self._team is None:
                raise
            self._team.unfit(fault)
        else:
            if self._team is not None:
                self._team.fit()

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        tasks = row_tasks(row["task"])
        if self._team is None:
            outcomes = [self._outcome(task, helping=False) for task in tasks]
        else:
            outcomes = self._team.work(tasks, self._outcome)
        return {"outcome": "\n".join(outcome.to_json() for outcome in outcomes)}

    def _outcome(self, task: ShardTask, helping: bool) -> ShardOutcome:
        started = time.time()
        record, rejects, error, warning = None, list[Reject](), "", ""
        try:
            # An actor may die between committing a shard and saying so, perhaps through another shard of its row.
            if (finished := finished_record(task)) is not None:
                record, rejects = finished
            else:
                if self._team is not None and not helping:
                    self._team.begin(task)
                record, rejects, warning = self._tokenize(task)
        except Exception as fault:  # noqa: BLE001 - one shard's fault must not end the others; the job fails at its end
            error = _one_line(fault)
        return ShardOutcome(task.name, record, rejects, error, warning, started, time.time(), peak_memory())

    def _tokenize(self, task: ShardTask) -> tuple[ShardRecord, list[Reject], str]:
        far = not (storage.is_local(task.source.url) and storage.is_local(task.dest))
        for _ in range(ATTEMPTS - 1):
            try:
                return self._attempt(task)
            except BrokenProcessPool:
                continue  # a decoder was killed, perhaps for want of memory by something else
            except Exception as fault:
                if not far or _lasting(fault):
                    raise
        return self._attempt(task)

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
        assert self._encoder is not None
        rejects: list[Reject] = []
        pictures = shard_pictures(task.corpus, task.source, task.index_sha256)
        with (
            self._encoder.batches(pictures, rejects, whole) as batches,
            contextlib.closing(self._in_turn(batches, task)) as tables,
        ):
            record = write_token_shard(task.dest, task.schema, tables, rejects)
        return record, rejects

    def _in_turn(self, batches: Iterable[Any], task: ShardTask) -> Generator[pa.Table, None, None]:
        """Rows of a shard. The model is free again when they are encoded, while the file's end is still on its way."""
        assert self._encoder is not None
        rows, told = 0, time.monotonic()
        with self._model_turn:
            for table in self._encoder.tables(batches, task.schema):
                rows += table.num_rows
                if self._team is not None and time.monotonic() - told > TELL_EVERY_S:
                    self._team.advance(task, rows // self._views)
                    told = time.monotonic()
                yield table


def _ready_encoder(
    tokenizer_url: str, digest: str, config: TokenizeConfig, batch_size: int, threads: int, device: str
) -> Encoder:
    """The tokenizer with its decoders, after a first call. Raises FlextokError where it cannot be had."""
    decoders = DecodeProcesses(threads)  # they start while the tokenizer is read
    with telling_storage_errors(f"load {tokenizer_url}"):
        tokenizer = load_tokenizer(tokenizer_url, device, getattr(torch, config.dtype))
    if tokenizer.digest != digest:
        raise IntegrityError(f"expected tokenizer {digest[:12]} at {tokenizer_url}, found {tokenizer.digest[:12]}")
    torch.set_num_threads(1)
    encoder = Encoder(tokenizer, config, batch_size, decoders)
    encoder.warm_up()
    return encoder


def _lasting(fault: Exception) -> bool:
    """Whether trying again cannot help."""
    if isinstance(fault, FileNotFoundError | PermissionError):
        return True
    if isinstance(fault, OSError):
        return fault.errno in LASTING_FAULTS
    return isinstance(fault, FlextokError) and not isinstance(fault, IntegrityError)


def _one_line(fault: Exception) -> str:
    text = " ".join(str(fault).split())
    if isinstance(fault, FlextokError):
        return text
    if isinstance(fault, BrokenProcessPool):
        return f"a decoding process was killed {ATTEMPTS} times; look for want of memory, or a picture that crashes it"
    return f"{type(fault).__name__}: {text}"[:500]
