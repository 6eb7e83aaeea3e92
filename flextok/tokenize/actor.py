"""The actor of a bulk tokenization: holds the tokenizer, turns one shard after another into a Parquet file."""

import contextlib
import dataclasses
import errno
import json
import resource
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
from flextok.runtime.memory import keep_freed_memory
from flextok.runtime.storage_errors import FULL, telling_storage_errors
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.decoding import DecodeProcesses
from flextok.tokenize.encoding import Damaged, Encoder
from flextok.tokenize.fitness import Proof, unfit_line
from flextok.tokenize.tasks import ShardTask, finished_record, task_from_json

ATTEMPTS = 4
LASTING_FAULTS = (*FULL, errno.EROFS)
SHARDS_AT_ONCE = 2
MOST_CRASHES = 5
HELP = "help"
HELP_EVERY_S = 0.5
TELL_EVERY_S = 1.0


@dataclasses.dataclass(frozen=True)
class ShardOutcome:
    """What became of one task: a record, or an error in one line. Times are seconds since the epoch."""

    shard: str
    record: ShardRecord | None
    rejects: list[Reject]
    error: str
    warning: str
    started: float
    ended: float
    peak_bytes: int
    """Most memory its actor had in use so far."""

    def to_json(self) -> str:
        """As it travels through Ray Data."""
        values = dataclasses.asdict(self)
        values["rejects"] = [reject._asdict() for reject in self.rejects]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> "ShardOutcome":
        """What `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        values["record"] = ShardRecord(**values["record"]) if values["record"] else None
        values["rejects"] = [Reject(**reject) for reject in values["rejects"]]
        return cls(**values)


class ShardTokenizer:
    """Callable for Ray Data: a row `{task}` in, a row `{outcome}` out, each a line of JSON for each of its shards.

    A fault of one shard is told, not raised. Ray calls it for two rows at once: while one has the model, the other's pictures are read and decoded ahead. A row
    with the task HELP asks for a straggler of another actor, and its outcome is "" when there was none to the end.
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
        self._monitor = monitor
        self._model_turn = threading.Lock()
        try:
            if proof is not None:
                proof.give()
            self._encoder: Encoder | None = _ready_encoder(tokenizer_url, digest, settings, batch_size, threads, device)
        except FlextokError as fault:
            if monitor is None:
                raise
            self._encoder = None
            monitor.unfit.remote(_own_id(), unfit_line(fault))
        else:
            if monitor is not None:
                monitor.fit.remote(_own_id())

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        if self._encoder is None:
            return {"outcome": self._stand_aside(row["task"])}
        if row["task"] == HELP:
            return {"outcome": self._help()}
        return {"outcome": "\n".join(self._made(task_from_json(line)) for line in row["task"].split("\n"))}

    def _made(self, task: ShardTask) -> str:
        outcome = self._outcome(task, helping=False)
        if self._monitor is not None:
            self._monitor.end.remote(task.name, outcome.record.rows // self._views if outcome.record else 0)
        return outcome.to_json()

    def _stand_aside(self, row: str) -> str:
        """On a node that cannot do the work: leave a row's tasks to others, and take no more of them by ending early."""
        import ray

        shards = [""] if row == HELP else [task_from_json(line).name for line in row.split("\n")]
        while any(ray.get([self._monitor.set_aside.remote(shard) for shard in shards])):
            time.sleep(HELP_EVERY_S)
        return ""

    def _help(self) -> str:
        """The outcome of a straggler made here too; "" when there is none, or it could not be made here either."""
        import ray

        while True:
            found: Any = ray.get(self._monitor.straggler.remote(_own_id()))
            if found is None:
                return ""
            if found:
                task = task_from_json(found)
                outcome = self._outcome(task, helping=True)
                if outcome.record is None:
                    return ""
                warning = f"shard {task.name} was slow where it was begun; another actor made it too"
                return dataclasses.replace(outcome, warning=warning).to_json()
            time.sleep(HELP_EVERY_S)

    def _outcome(self, task: ShardTask, helping: bool) -> ShardOutcome:
        started = time.time()
        record, rejects, error, warning = None, list[Reject](), "", ""
        try:
            # An actor may die between committing a shard and saying so, perhaps through another shard of its row.
            if (finished := finished_record(task)) is not None:
                record, rejects = finished
            else:
                if not helping:
                    self._begin(task)
                record, rejects, warning = self._tokenize(task)
        except Exception as fault:  # noqa: BLE001 - one shard's fault must not end the others; the job fails at its end
            error = _one_line(fault)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return ShardOutcome(task.name, record, rejects, error, warning, started, time.time(), peak)

    def _begin(self, task: ShardTask) -> None:
        """Raises FlextokError when this job has begun the shard too often: each time but the last its actor died.

        Without this a shard which needs more memory than there is would kill actors for ever.
        """
        if self._monitor is None:
            return
        import ray
        from ray.cloudpickle import dumps  # pyright: ignore

        context = ray.get_runtime_context()
        handle = dumps(context.current_actor)  # as bytes: the monitor need not load what an actor needs
        began = self._monitor.begin.remote(task.name, context.get_actor_id(), handle)
        died: Any = ray.get(began)
        if died > MOST_CRASHES:
            raise FlextokError(f"its actor died {died} times; look for want of memory, or try a smaller batch_size")

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
                if self._monitor is not None and time.monotonic() - told > TELL_EVERY_S:
                    self._monitor.advance.remote(task.name, rows // self._views)
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


def _own_id() -> str:
    import ray

    return ray.get_runtime_context().get_actor_id()  # pyright: ignore[reportReturnType]


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
