"""From a corpus configuration to the listing of its sources, and the cheap digest of that listing."""

from dataclasses import dataclass

import polars as pl

from flextok import storage
from flextok.data.config import CorpusConfig, SourceConfig, source_name
from flextok.data.corpus.assignment import in_split
from flextok.data.rejects import Reject
from flextok.data.sources.base import Reader
from flextok.data.sources.containers import expand_braces
from flextok.data.sources.labels import Labels, label_csv_url, make_labels
from flextok.data.sources.look import Look
from flextok.data.sources.registry import AUTO, SOURCES, SourceFormat, all_formats
from flextok.data.sources.staging import Staging
from flextok.digests import digest_of
from flextok.errors import UsageError
from flextok.runtime.storage_errors import telling_storage_errors


@dataclass
class Catalog:
    """All inputs of a corpus split: one frame over all sources, and what reads them."""

    frame: pl.DataFrame
    """Columns of VIEWS_SCHEMA and `reader`, the index into `readers`; names carry their source's name."""
    readers: tuple[Reader, ...]
    prefixes: tuple[str, ...]
    """For each reader what its names begin with ("" or "<source name>/")."""
    rejects: list[Reject]
    labels: Labels
    fields: int = 0
    """Members that go with inputs and rejects, such as captions in files of their own."""


def shown_sources(config: CorpusConfig) -> str:
    """The sources' URLs, fit for a message."""
    return ", ".join(storage.redact(source.url) for source in config.all_sources())


def check_sources(config: CorpusConfig) -> None:
    """Raises UsageError when a source is not there at all, FlextokError when its store fails."""
    with telling_storage_errors(f"read {shown_sources(config)}"):
        _check_sources(config)


def _check_sources(config: CorpusConfig) -> None:
    for source in config.all_sources():
        if _without_files(source) is None and not storage.exists(expand_braces(source.url)[0]):
            raise UsageError(
                f"expected pictures in {storage.redact(source.url)}, found nothing there; check corpus.source"
            )


def list_sources(config: CorpusConfig, split: str, staging: Staging) -> Catalog:
    """Lists every input of a split. Raises UsageError when a source has no such split or cannot be read as its format,
    FlextokError when a store fails."""
    with telling_storage_errors(f"read {shown_sources(config)}"):
        return _list_sources(config, split, staging)


def _list_sources(config: CorpusConfig, split: str, staging: Staging) -> Catalog:
    sources = config.all_sources()
    listings = [format_of(source).list(source, split, config, staging) for source in sources]
    prefixes = tuple(f"{source_name(source)}/" if len(sources) > 1 else "" for source in sources)
    frames, rejects, fields = [], [], 0
    for index, (listing, prefix) in enumerate(zip(listings, prefixes, strict=True)):
        frame = listing.frame
        if not listing.has_splits:
            decides = frame.select(pl.coalesce("group", "name")).to_series()
            frame = frame.filter(in_split(decides, split, config.val_fraction))
        fields += listing.fields + int(frame["fields"].sum())
        if prefix:
            frame = frame.with_columns(name=prefix + pl.col("name"), base=prefix + pl.col("base"))
        frames.append(frame.with_columns(reader=pl.lit(index, pl.Int16)))
        rejects += [Reject(prefix + reject.source, reject.reason, reject.detail) for reject in listing.rejects]
    labels = make_labels(config, [listing.classes for listing in listings])
    readers = tuple(listing.reader for listing in listings)
    return Catalog(pl.concat(frames), readers, prefixes, rejects, labels, fields)


def source_digest(config: CorpusConfig, split: str) -> str:
    """A digest that changes when what a corpus split is made of may have: names and sizes of files, their ETags or the
    times they were last written, class folders, and the content of captions and label files.

    Cheap (no picture, tar or table is read), for a nightly look. It says when to shard again: files that were only
    touched, or copied elsewhere, then give the same corpus. Raises UsageError when a source is missing or has no such
    split.
    """
    with telling_storage_errors(f"read {shown_sources(config)}"):
        return _source_digest(config, split)


def _source_digest(config: CorpusConfig, split: str) -> str:
    _check_sources(config)
    parts = [format_of(source).digest(source, split, config) for source in config.all_sources()]
    labels = label_csv_url(config)
    return digest_of([parts, storage.sha256_file(labels) if labels else None])


def format_of(source: SourceConfig) -> SourceFormat:
    """The format that reads `source`: the one it names, or that knows it by its look. Raises UsageError when none does."""
    known = _without_files(source)
    if known is not None:
        return known
    if source.format != AUTO:
        return SOURCES[source.format]
    look = Look(source.url)
    for format in all_formats():
        if format.detects(look):
            return format
    raise UsageError(
        f"expected a folder, tar, Parquet or captions file in {storage.redact(source.url)}, found a file starting with "
        f"{look.start[:8]!r}"
    )


def absolute(source: SourceConfig) -> SourceConfig:
    """`source` with a URL that means the same in every process."""
    if _without_files(source) is not None:
        return source
    return source.model_copy(update={"url": storage.absolute(source.url)})


def _without_files(source: SourceConfig) -> SourceFormat | None:
    """The format of a source that lies in no storage, None of others."""
    look = Look(source.url)
    formats = [format for format in all_formats() if not format.needs_files]
    return next((format for format in formats if format.name == source.format or format.detects(look)), None)
