"""Parquet tables of pictures: as Hugging Face datasets writes them, or with the bytes in a plain binary column.

Each picture of a row is a sample: those of several columns, and those in lists. They are views of one another, named by
column and place in the list, and share the row's caption and class. `corpus.image_column` takes one column alone.
"""

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.config import CorpusConfig, SourceConfig
from flextok.data.rejects import Reject
from flextok.data.sources.base import InputError, RawInput
from flextok.data.sources.captions import is_captions_table
from flextok.data.sources.containers import Container, containers_digest, list_containers
from flextok.data.sources.files import read_range
from flextok.data.sources.listing import VIEWS_SCHEMA, Listing
from flextok.data.sources.look import Look
from flextok.data.sources.registry import SOURCES, SourceFormat
from flextok.data.sources.staging import Staging, readable_at_random
from flextok.digests import canonical_json, digest_of
from flextok.errors import UsageError

ENDINGS = (".parquet",)
MAGIC = b"PAR1"
ROWS_AT_ONCE = 32
TEXT_COLUMNS = ("text", "caption", "captions", "sentence", "sentences", "sentences_raw", "prompt")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label", "coarse_label")
REJECTS_KEY = b"flextok.rejects"
LISTING_VERSION = 2


@dataclass(frozen=True)
class Columns:
    """Which columns of a table mean what, and the names of its classes."""

    images: tuple[str, ...]
    text: str | None
    label: str | None
    classes: list[str] | None


@dataclass(frozen=True)
class StagedReader:
    """Reads pictures that were copied out of Parquet files."""

    folder: str
    remote: bool = False

    def read(self, name: str, size: int, where: str | None, max_bytes: int) -> RawInput:
        """See Reader."""
        note = json.loads(where or "{}")
        path = storage.join(self.folder, note["file"])
        try:
            image = read_range(path, note["offset"], note["offset"] + size)
        except OSError as error:
            raise InputError("unreadable", storage.redact(str(error))) from None
        label = note["label"]
        keys = (note["path"], *([str(label)] if label is not None else []), name)
        used = tuple(key for key in keys if key)
        return RawInput(image, label, used, tuple(note["captions"]), note["metadata"], note["view"])


def list_parquet(url: str, split: str, config: CorpusConfig, staging: Staging) -> Listing:
    """The rows of all Parquet files of a split, their pictures copied to the staging folder. Raises UsageError."""
    containers, rejects, has_splits = list_containers(url, split, ENDINGS)
    frames: list[pl.DataFrame] = []
    classes: list[str] | None = None
    for container in containers:
        try:
            frame, bad, names = _staged(container, config, staging)
        except (OSError, pa.ArrowException, ValueError) as error:
            rejects.append(Reject(container.name, "bad_container", storage.redact(_one_line(error))))
            continue
        if classes is not None and names is not None and names != classes:
            raise UsageError(
                f"expected the same class names in all files of {storage.redact(url)}, found others in {container.name}"
            )
        classes = classes or names
        frames.append(frame)
        rejects += bad
    frame = pl.concat(frames) if frames else pl.DataFrame(schema=VIEWS_SCHEMA)
    reader = StagedReader(staging.folder, remote=not storage.is_local(staging.folder))
    return Listing(frame, reader, rejects, classes, has_splits)


def find_columns(schema: pa.Schema, config: CorpusConfig) -> Columns:
    """The columns of a table, by the options, its Hugging Face metadata, types and usual names; raises UsageError."""
    features = _features(schema)
    names = schema.names
    for option in ("image_column", "text_column", "label_column"):
        wanted = getattr(config, option)
        if wanted is not None and wanted not in names:
            raise UsageError(f"corpus.{option}: expected one of {', '.join(names)}, found {wanted!r}")
    kinds = {name: _kind(features.get(name)) for name in names}
    marked = [name for name in names if kinds[name] == "Image"]
    # What is marked as something else, as sound is, is no picture, though its bytes are kept in the same way.
    structs = [name for name in names if kinds[name] is None and _has_bytes(schema.field(name).type)]
    images = [config.image_column] if config.image_column else marked or structs
    if not images:
        raise UsageError(f"expected a column of pictures, found {', '.join(names)}; set corpus.image_column")
    label = config.label_column or _first(
        [name for name in names if kinds[name] == "ClassLabel"],
        [name for name in LABEL_COLUMNS if name in names],
    )
    text = config.text_column or _first([name for name in TEXT_COLUMNS if name in names])
    classes = features[label].get("names") if label and isinstance(features.get(label), dict) else None
    return Columns(tuple(images), text, label, [str(name) for name in classes] if isinstance(classes, list) else None)


def _staged(
    container: Container, config: CorpusConfig, staging: Staging
) -> tuple[pl.DataFrame, list[Reject], list[str] | None]:
    """Listing, rejects and class names of one file; its pictures are copied unless they have been before."""
    if container.size == 0:
        raise ValueError("0 bytes: an unfinished download?")
    goal = staging.file(container)
    asked = [LISTING_VERSION, config.image_column, config.text_column, config.label_column, config.max_bytes]
    listing_file = f"{goal}-{digest_of(asked)[:8]}.parquet"
    with storage.open_read(readable_at_random(container, staging)) as file:
        table = pq.ParquetFile(file)
        columns = find_columns(table.schema_arrow, config)
        if not storage.exists(listing_file):
            _copy(table, container, columns, config.max_bytes, goal, listing_file)
    with storage.open_read(listing_file) as file:
        stored = pq.read_table(file)
    rejects = [Reject(*row) for row in json.loads(stored.schema.metadata[REJECTS_KEY])]
    frame = pl.from_arrow(stored.replace_schema_metadata(None))
    assert isinstance(frame, pl.DataFrame)
    return frame.cast(dict(VIEWS_SCHEMA)), rejects, columns.classes


def _copy(
    table: pq.ParquetFile, container: Container, columns: Columns, max_bytes: int, goal: str, listing_file: str
) -> None:
    """Pictures to `goal`, one behind the other, then the listing of where they are, which commits them."""
    rows: list[tuple[Any, ...]] = []
    rejects: list[Reject] = []
    base = container.name.removesuffix(".parquet")
    with storage.atomic_write(goal) as file:
        offset = 0
        for number, row in enumerate(_rows(table, columns)):
            key = f"{number:07d}"
            pictures = _pictures(row, columns.images)
            for place, view, value in pictures:
                name = f"{container.name}/{key}{place}"
                try:
                    image, path = _image(value, max_bytes)
                    note = {
                        "file": posixpath.basename(goal),
                        "offset": offset,
                        "path": path,
                        "view": view,
                        **_texts(row, columns),
                    }
                except InputError as error:
                    rejects.append(Reject(name, error.reason, error.detail))
                    continue
                file.write(image)
                stamp = digest_of([container.stamp, view])[:16] if view else container.stamp
                group = f"{container.name}/{key}" if len(pictures) > 1 else None
                rows.append((name, f"{base}_{key}{place}", len(image), stamp, canonical_json(note), 0, group))
                offset += len(image)
    if not rows and not rejects:
        rejects.append(Reject(container.name, "empty_container", "a table without rows"))
    listing = pl.DataFrame(rows, schema=VIEWS_SCHEMA, orient="row").to_arrow()
    with storage.atomic_write(listing_file) as file:
        pq.write_table(listing.replace_schema_metadata({REJECTS_KEY: canonical_json(rejects)}), file)


def _rows(table: pq.ParquetFile, columns: Columns) -> Iterator[dict[str, Any]]:
    wanted = [name for name in (*columns.images, columns.text, columns.label) if name is not None]
    for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(dict.fromkeys(wanted))):
        yield from batch.to_pylist()


def _pictures(row: dict[str, Any], columns: tuple[str, ...]) -> list[tuple[str, str, Any]]:
    """Each picture of a row: what its name has behind the row's, its view's name, and its value.

    What is null counts only where a row has no picture at all.
    """
    found: list[tuple[str, str, Any]] = []
    for column in columns:
        several = len(columns) > 1
        value = row[column]
        if isinstance(value, list):
            views = [f"{column}.{number}" if several else str(number) for number in range(len(value))]
            found += [(f"/{view}", view, item) for view, item in zip(views, value, strict=True)]
        elif several:
            # The first column alone made the sample before there were views: it keeps its name.
            found.append(("" if column == columns[0] else f"/{column}", column, value))
        else:
            found.append(("", "", value))
    return [one for one in found if one[2] is not None] or [("", "", None)]


def _image(value: Any, max_bytes: int) -> tuple[bytes, str | None]:
    path = value.get("path") if isinstance(value, dict) else None
    image = value.get("bytes") if isinstance(value, dict) else value
    if image is None:
        raise InputError("missing_image", f"no bytes, only the path {path!r}" if path else "null")
    if not isinstance(image, bytes):
        raise InputError("bad_metadata", f"expected bytes in the image column, found {type(image).__name__}")
    if len(image) > max_bytes:
        raise InputError("too_many_bytes", f"{len(image)} bytes, allowed {max_bytes}")
    return image, path


def _texts(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    text = row.get(columns.text) if columns.text else None
    captions = [text] if isinstance(text, str) else [item for item in text or [] if isinstance(item, str)]
    label = row.get(columns.label) if columns.label else None
    if label is not None and not isinstance(label, int | str):
        raise InputError(
            "bad_metadata", f"expected a class id or name in {columns.label}, found {type(label).__name__}"
        )
    if isinstance(label, int) and label < 0:  # Hugging Face's mark for a hidden label
        label = None
    return {"captions": captions, "label": label, "metadata": {}}


def _features(schema: pa.Schema) -> dict[str, Any]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return dict(features)
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _kind(feature: Any) -> str | None:
    """What a Hugging Face feature says a column, or the items of its lists, to be: Image, ClassLabel, Value, Audio."""
    if isinstance(feature, list):
        return _kind(feature[0]) if len(feature) == 1 else None
    if not isinstance(feature, dict):
        return None
    return _kind(feature["feature"]) if "feature" in feature else feature.get("_type")


def _has_bytes(kind: pa.DataType) -> bool:
    """Whether a column has structs with `bytes`, or lists of them."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _has_bytes(kind.value_type)
    return pa.types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))


def _first(*groups: list[str]) -> str | None:
    return next((name for group in groups for name in group), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class ParquetFormat(SourceFormat):
    """Tables with the pictures in a column."""

    name = "parquet"
    asked = 2

    def detects(self, look: Look) -> bool:
        if look.file is not None:
            return (look.start.startswith(MAGIC) or look.file_ends(ENDINGS)) and not is_captions_table(look.file)
        # Beside folders, and beside a table of captions, tables are img2dataset's records.
        tables = [name for name in map(str.lower, look.names) if name.endswith(ENDINGS)]
        own = [name for name in tables if name.removesuffix(ENDINGS[0]) not in look.folders]
        return len(own) - sum(map(is_captions_table, look.places)) > look.pictures

    def list(self, source: SourceConfig, split: str, config: CorpusConfig, staging: Staging) -> Listing:
        return list_parquet(source.url, split, config, staging)

    def digest(self, source: SourceConfig, split: str, config: CorpusConfig) -> str:
        return containers_digest(source.url, split, ENDINGS)


SOURCES.add("parquet", ParquetFormat())
