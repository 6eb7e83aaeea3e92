"""What a tokenization will do: its shards, each with a fingerprint, and what is finished already."""

import concurrent.futures
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.corpus.crops import preprocess_record
from flextok.data.corpus.reader import Corpus, Shard
from flextok.data.rejects import Reject
from flextok.data.tokens import (
    FORMAT,
    ContentHash,
    ShardRecord,
    StoredShard,
    TokenMeta,
    token_schema,
    write_token_shard,
)
from flextok.data.tokens.files import DamagedFile, parquet_errors, read_shard_footer
from flextok.data.tokens.schema import values_of
from flextok.data.tokens.writer import MANIFEST, REJECTS_KEY
from flextok.digests import digest_of
from flextok.errors import IntegrityError, UsageError
from flextok.tokenize.config import TokenizeConfig
from flextok.version import __version__

if TYPE_CHECKING:  # it loads torch, which only those who tokenize need
    from flextok.model.load import TokenizerSpec

CHECK_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard of a sharded job: what it is made of, and where it goes."""

    corpus: str
    """Folder of the corpus split, or of what else the shards are made of."""
    source: Shard
    dest: str
    """The file to make."""

    @property
    def name(self) -> str:
        """Stem of that file."""
        return self.source.name.removesuffix(".tar")


TaskT = TypeVar("TaskT", bound=Task)
Finished = tuple[ShardRecord, list[Reject]]


@dataclasses.dataclass(frozen=True)
class TokenTask(Task):
    """One shard of tokens to make, and what its file must hold."""

    meta: TokenMeta
    has_views: bool

    @property
    def schema(self) -> pa.Schema:
        """Schema of the token shard."""
        return token_schema(self.meta, views=self.has_views)


@dataclasses.dataclass(frozen=True)
class ShardTask(TokenTask):
    """One shard of images to tokenize."""

    index_sha256: str | None
    """Hash of the index beside the shard, as the corpus' manifest has it."""


def shard_tasks(corpus: Corpus, spec: "TokenizerSpec", dest: str, config: TokenizeConfig) -> list[ShardTask]:
    """A task for each shard of the corpus."""
    if config.keep is not None and config.keep > spec.num_tokens:
        raise UsageError(
            f"expected keep in 1..{spec.num_tokens}, found {config.keep}; the tokenizer has no more tokens"
        )
    config.length.require(spec.image_size)
    preprocess = preprocess_record(spec.image_size, config.views)
    tasks = []
    for shard in corpus.shards:
        content = {
            "tokenizer": spec.digest,
            "settings": config.content(),
            "preprocess": preprocess,
            "code_version": __version__,
            "shard": shard.name,
            "source_sha256": shard.sha256,
        }
        meta = TokenMeta(
            tokenizer=spec.digest,
            vocab_size=spec.vocab_size,
            num_tokens=config.keep or spec.num_tokens,
            corpus=corpus.digest,
            source=shard.name,
            source_sha256=shard.sha256,
            codebooks=spec.codebooks,
            values=values_of(spec.vocab_size),
            preprocess=preprocess,
            dtype=config.dtype,
            batch_size=config.batch_size or 0,
            fingerprint=digest_of(content),
        )
        file = storage.join(dest, f"{shard.name.removesuffix('.tar')}.parquet")
        has_views = config.views != ("center",)
        tasks.append(ShardTask(corpus.url, shard, file, meta, has_views, corpus.index_sha256(shard)))
    return tasks


def check_destination(dest: str, spec: "TokenizerSpec") -> None:
    """Raises UsageError when `dest` holds anything that this job must not write over."""
    refuse_others(dest, FORMAT, ".parquet", lambda url: _refuse_foreign(url, spec))


def refuse_others(dest: str, manifest_format: str, suffix: str, refuse_foreign: Callable[[str], None]) -> None:
    """Raises UsageError when `dest` holds anything that a job must not write over.

    That is a manifest of another format, or a file with this ending that `refuse_foreign` raises UsageError for.
    """
    manifest_url = storage.join(dest, MANIFEST)
    if storage.exists(manifest_url):
        manifest = storage.read_json(manifest_url)
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found != manifest_format:
            raise UsageError(
                f"expected a new folder or {manifest_format} at {dest}, found {found!r}; give another folder"
            )
    names = [name for name in storage.list_names(dest) if name.endswith(suffix)]
    with concurrent.futures.ThreadPoolExecutor(CHECK_THREADS) as pool:
        list(pool.map(lambda name: refuse_foreign(storage.join(dest, name)), names))


def _refuse_foreign(url: str, spec: "TokenizerSpec") -> None:
    try:
        shard = read_shard_footer(url)
    except DamagedFile:
        return  # it is made again
    except IntegrityError:
        raise UsageError(
            f"expected only token shards beside {url}, found another Parquet file; give another folder"
        ) from None
    if shard.meta.tokenizer != spec.digest:
        raise UsageError(
            f"expected tokens of tokenizer {spec.digest[:12]} in {url}, found those of {shard.meta.tokenizer[:12]}; "
            "give another folder, or remove this one"
        )


def finished_records(
    tasks: Sequence[TaskT], finished_record: Callable[[TaskT], Finished | None]
) -> dict[str, Finished]:
    """The tasks whose shards are there, made by the same settings from the same bytes, whole and undamaged."""
    with concurrent.futures.ThreadPoolExecutor(CHECK_THREADS) as pool:
        records = pool.map(finished_record, tasks)
        return {task.name: record for task, record in zip(tasks, records, strict=True) if record is not None}


def finished_record(task: TokenTask) -> Finished | None:
    """The record and rejects of a task's shard when it is finished; None when it must be (re)made.

    All rows are read and hashed: a file damaged since it was written does not pass.
    """
    try:
        shard = read_shard_footer(task.dest)
        if shard.meta.fingerprint != task.meta.fingerprint or shard.meta.source_sha256 != task.meta.source_sha256:
            return None
        with parquet_errors(task.dest), storage.open_read(task.dest) as file:
            parquet = pq.ParquetFile(file)
            rejects = [Reject(**reject) for reject in json.loads(parquet.metadata.metadata[REJECTS_KEY.encode()])]
            table = parquet.read()
    except (FileNotFoundError, IntegrityError, KeyError, ValueError):
        return None
    content = ContentHash(shard.meta)
    content.update(table)
    if content.hexdigest() != shard.content_sha256:
        return None
    if shard.meta.corpus != task.meta.corpus:
        # Same bytes in a corpus that has changed elsewhere: the rows stay, the corpus' name is brought up to date.
        schema = token_schema(dataclasses.replace(shard.meta, corpus=task.meta.corpus), views=task.has_views)
        return write_token_shard(task.dest, schema, [table.cast(schema)], rejects), rejects
    return _record(shard, content.rows, len(rejects)), rejects


def _record(shard: StoredShard, rows: int, rejects: int) -> ShardRecord:
    return ShardRecord(
        shard=shard.name,
        rows=rows,
        sha256=storage.sha256_file(shard.url),
        source_sha256=shard.meta.source_sha256,
        content_sha256=shard.content_sha256,
        bytes=shard.bytes,
        rejects=rejects,
    )


def task_to_json(task: Task) -> str:
    """The task as a string, as it travels through Ray Data."""
    return json.dumps(dataclasses.asdict(task))


def task_from_json(text: str) -> ShardTask:
    """The task that `task_to_json` wrote."""
    values = json.loads(text)
    return ShardTask(**{**values, "source": Shard(**values["source"]), "meta": TokenMeta(**values["meta"])})
