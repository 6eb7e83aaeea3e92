"""From a corpus configuration to the listing of its sources, and the cheap digest of that listing."""

from dataclasses import dataclass

import polars as pl

from flextok import storage
from flextok.data.config import SCENES, CorpusConfig, SourceConfig, source_name
from flextok.data.corpus.assignment import in_split
from flextok.data.rejects import Reject
from flextok.data.scenes import scenes_digest
from flextok.data.sources import parquet, webdataset
from flextok.data.sources.base import Reader
from flextok.data.sources.captions import list_captions
from flextok.data.sources.containers import expand_braces, list_containers
from flextok.data.sources.detect import detect_format
from flextok.data.sources.drawn import list_scenes
from flextok.data.sources.folder import list_folder
from flextok.data.sources.labels import Labels, label_csv_url, make_labels
from flextok.data.sources.listing import Listing
from flextok.data.sources.parquet import list_parquet
from flextok.data.sources.staging import Staging
from flextok.data.sources.webdataset import list_webdataset
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
        if not _is_drawn(source) and not storage.exists(expand_braces(source.url)[0]):
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
    listings = [_list_source(config, source, split, staging) for source in sources]
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
    parts = [_digest_source(config, source, split) for source in config.all_sources()]
    labels = label_csv_url(config)
    return digest_of([parts, storage.sha256_file(labels) if labels else None])


def _list_source(config: CorpusConfig, source: SourceConfig, split: str, staging: Staging) -> Listing:
    format = _format(source)
    if format == "scenes":
        return list_scenes(config.scenes, split)
    if format == "webdataset":
        return list_webdataset(source.url, split, staging)
    if format == "parquet":
        return list_parquet(source.url, split, config, staging)
    if format == "captions":
        return list_captions(source.url, split, config)
    return list_folder(source.url, split, source.format)


def _digest_source(config: CorpusConfig, source: SourceConfig, split: str) -> str:
    format = _format(source)
    if format == "scenes":
        return digest_of(
            [scenes_digest(config.scenes, part) for part in (("train", "val") if split == "all" else (split,))]
        )
    if format in ("webdataset", "parquet"):
        endings = webdataset.ENDINGS if format == "webdataset" else parquet.ENDINGS
        containers, others, _ = list_containers(source.url, split, endings)
        return digest_of([[[c.name, c.size, c.stamp] for c in containers], others])
    listing = (
        list_captions(source.url, split, config)
        if format == "captions"
        else list_folder(source.url, split, source.format)
    )
    rows = listing.frame.select(pl.concat_str("name", pl.col("size").cast(pl.String), "stamp", separator="|"))
    return digest_of([sorted(rows.to_series().to_list()), sorted(listing.rejects), listing.classes])


def _format(source: SourceConfig) -> str:
    if _is_drawn(source):
        return "scenes"
    return detect_format(source.url) if source.format == "auto" else source.format


def _is_drawn(source: SourceConfig) -> bool:
    return source.url == SCENES or source.format == "scenes"
