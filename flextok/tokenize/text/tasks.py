"""What an encoding of captions will do: its shards, each with a fingerprint, and what is finished already."""

import json
from dataclasses import dataclass

from flextok import storage
from flextok.data.corpus.reader import Corpus, Shard
from flextok.data.text_features.shard import FORMAT, SUFFIX, TextMeta, read_feature_shard
from flextok.data.tokens.files import DamagedFile
from flextok.data.tokens.writer import ShardRecord
from flextok.digests import digest_of
from flextok.errors import IntegrityError, UsageError
from flextok.tokenize.tasks import Finished, Task, refuse_others
from flextok.version import __version__


@dataclass(frozen=True)
class EncoderSpec:
    """What the driver of a job must know of a text encoder; only its workers compute with it."""

    name: str
    digest: str
    width: int


@dataclass(frozen=True)
class TextTask(Task):
    """One image shard whose captions are to be encoded, and what the file says of itself."""

    meta: TextMeta


def text_tasks(corpus: Corpus, encoder: EncoderSpec, dest: str) -> list[TextTask]:
    """A task for each shard of the corpus."""
    tasks = []
    for shard in corpus.shards:
        content = {
            "format": FORMAT,
            "encoder": encoder.digest,
            "code_version": __version__,
            "shard": shard.name,
            "source_sha256": shard.sha256,
        }
        meta = TextMeta(
            encoder=encoder.digest,
            encoder_name=encoder.name,
            width=encoder.width,
            source=shard.name,
            source_sha256=shard.sha256,
            fingerprint=digest_of(content),
        )
        file = storage.join(dest, f"{shard.name.removesuffix('.tar')}{SUFFIX}")
        tasks.append(TextTask(corpus.url, shard, file, meta))
    return tasks


def text_task_from_json(text: str) -> TextTask:
    """The task that `task_to_json` wrote."""
    values = json.loads(text)
    return TextTask(**{**values, "source": Shard(**values["source"]), "meta": TextMeta(**values["meta"])})


def finished_text(task: TextTask) -> Finished | None:
    """The record of a task's file when it is finished, all bytes of which are read; None when it must be (re)made."""
    try:
        shard = read_feature_shard(task.dest)
        if shard.meta.fingerprint != task.meta.fingerprint or shard.content() != shard.content_sha256:
            return None
        file_sha256 = storage.sha256_file(task.dest)
    except (FileNotFoundError, IntegrityError):
        return None
    record = ShardRecord(
        shard.name, shard.images, file_sha256, shard.meta.source_sha256, shard.content_sha256, shard.bytes, 0
    )
    return record, []


def is_written(task: TextTask) -> bool:
    """Whether the file that is there is this task's."""
    return read_feature_shard(task.dest).meta.fingerprint == task.meta.fingerprint


def check_destination(dest: str, encoder: EncoderSpec) -> None:
    """Raises UsageError when `dest` holds anything that this job must not write over."""
    refuse_others(dest, FORMAT, SUFFIX, lambda url: _refuse_foreign(url, encoder))


def _refuse_foreign(url: str, encoder: EncoderSpec) -> None:
    try:
        shard = read_feature_shard(url)
    except DamagedFile:
        return  # it is made again
    except IntegrityError:
        raise UsageError(f"expected only text features beside {url}, found another file; give another folder") from None
    if shard.meta.encoder != encoder.digest:
        raise UsageError(
            f"expected features of the encoder {encoder.name}, {encoder.digest[:12]}, in {url}, found those of "
            f"{shard.meta.encoder_name}, {shard.meta.encoder[:12]}; give another folder, or remove this one"
        )
