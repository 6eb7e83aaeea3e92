"""Folders of pictures with a captions file: JSON lines, a table (CSV with a header, Parquet), or COCO's captions JSON."""

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.config import CorpusConfig, SourceConfig
from flextok.data.rejects import Reject
from flextok.data.sources.base import RawInput
from flextok.data.sources.containers import is_file
from flextok.data.sources.csv_table import csv_rows
from flextok.data.sources.files import FolderReader, is_image_name, read_file
from flextok.data.sources.folder import ENDING
from flextok.data.sources.listing import LISTING_SCHEMA, Listing
from flextok.data.sources.look import Look
from flextok.data.sources.registry import SOURCES, SourceFormat
from flextok.data.sources.staging import Staging
from flextok.data.sources.walk import SPLIT_NAMES, require_split, split_folders, top_folders, walk
from flextok.digests import digest_of
from flextok.errors import UsageError

TABLE_NAMES = ("captions.tsv", "metadata.tsv", "captions.parquet", "metadata.parquet")
USUAL_NAMES = ("captions.jsonl", "metadata.jsonl", "captions.csv", "metadata.csv", "captions.json", *TABLE_NAMES)
COCO_NAME = re.compile(r"^captions_(.+)\.json$")
FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path", "filepath", "img")
TEXT_COLUMNS = ("text", "caption", "captions", "sentence", "title", "prompt")


@dataclass
class Captions:
    """A parsed captions file: captions by file name relative to the source, and entries that are of no use."""

    by_name: dict[str, list[str]] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)


@dataclass(frozen=True)
class CaptionedReader:
    """Reads a picture of a folder; its captions stand in the listing."""

    folder: FolderReader

    @property
    def remote(self) -> bool:
        return self.folder.remote

    def read(self, name: str, size: int, where: str | None, max_bytes: int) -> RawInput:
        """See Reader."""
        image = read_file(self.folder.url, name, size, max_bytes)
        stem = posixpath.basename(name)
        keys = (name, stem, stem.rpartition(".")[0])
        return RawInput(image, None, keys, tuple(json.loads(where or "[]")))


def find_captions(url: str, folders: list[str], split: str) -> str | None:
    """The captions file of a split inside the folder `url`, relative to it; None when there is none."""
    own = split_folders(folders).get(split)
    places = [*([own] if own else []), "", *(["annotations"] if "annotations" in folders else [])]
    tables: list[str] = []
    for place in places:
        names = storage.list_names(storage.join(url, place) if place else url)
        for name in [*(name for name in USUAL_NAMES if name in names), *_coco_names(names, split)]:
            found = f"{place}/{name}" if place else name
            if name not in TABLE_NAMES or is_captions_table(storage.join(url, found)):
                return found
            tables.append(found)
    return tables[0] if tables else None


def list_captions(url: str, split: str, config: CorpusConfig) -> Listing:
    """The pictures of a folder with their captions; `url` is the folder or the captions file. Raises UsageError."""
    if is_file(url):
        url, _, captions_file = url.rpartition("/")
    else:
        captions_file = config.captions_file
    folders = top_folders(url)
    captions_file = captions_file or find_captions(url, folders, split)
    if captions_file is None:
        raise UsageError(f"expected a captions file ({', '.join(USUAL_NAMES)}, captions_*.json) in {url}, found none")
    splits = split_folders(folders)
    require_split(splits, split, url)
    below = splits[split] if splits and split != "all" else ""
    captions = read_captions(url, captions_file, below, config)
    found = walk(url, below)
    rejects = found.rejects + captions.rejects
    rows = []
    here = set(found.names)
    for name, size, stamp in zip(found.names, found.sizes, found.stamps, strict=True):
        texts = captions.by_name.get(name)
        if texts:
            mark = digest_of([stamp, texts])[:16]
            rows.append((name, re.sub(ENDING, "", name.removeprefix(f"{below}/")), size, mark, json.dumps(texts)))
        elif is_image_name(name):
            rejects.append(Reject(name, "no_caption", f"not in {captions_file}"))
        elif name != captions_file:
            rejects.append(Reject(name, "other_file", "not a picture"))
    rejects += [
        Reject(name, "missing_image", f"in {captions_file}, no such file") for name in captions.by_name if name not in here
    ]  # fmt: skip
    reader = CaptionedReader(FolderReader(url, not storage.is_local(url), classes=False))
    frame = pl.DataFrame(rows, schema=LISTING_SCHEMA, orient="row")
    # The captions file itself is a field, of all its pictures.
    return Listing(frame, reader, rejects, None, has_splits=bool(splits), fields=1)


def is_captions_table(url: str) -> bool:
    """Whether a file is a table (TSV, Parquet) of captions for the pictures beside it, by its name and its columns."""
    if posixpath.basename(url) not in TABLE_NAMES:
        return False
    try:
        if url.endswith(".tsv"):
            with storage.open_read(url) as file:
                names = set(csv_rows(file.readline().decode("utf-8-sig"), FILE_COLUMNS).fieldnames or [])
        else:
            with storage.open_read(url) as file:
                schema = pq.read_schema(file)
            # A column `image` of structs has pictures, not their names.
            names = {field.name for field in schema if not pa.types.is_struct(field.type)}
    except (OSError, ValueError, pa.ArrowException):
        return False
    return not names.isdisjoint(FILE_COLUMNS) and not names.isdisjoint(TEXT_COLUMNS)


def read_captions(url: str, captions_file: str, below: str, config: CorpusConfig) -> Captions:
    """Parses the captions file `captions_file` of the folder `url`; raises UsageError when it is not one at all."""
    ending = captions_file.rpartition(".")[2].lower()
    try:
        content = storage.read_bytes(storage.join(url, captions_file))
        text = "" if ending == "parquet" else content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"expected UTF-8 text in the captions file {captions_file} of {url}, found: {error}") from None
    captions = Captions()
    folder = posixpath.dirname(captions_file)
    if ending == "json":
        entries = list(_coco_entries(text, captions_file, captions))
        folder = _coco_image_folder(url, folder, below, entries)
    elif ending in ("csv", "tsv"):
        entries = list(_csv_entries(text, captions_file, config))
    elif ending == "parquet":
        entries = list(_parquet_entries(content, captions_file, config, captions))
    else:
        entries = list(_jsonl_entries(text, captions_file, config, captions))
    for place, name, texts in entries:
        _take(captions, place, folder, name, texts, below)
    return captions


def _take(captions: Captions, place: str, folder: str, name: str, texts: list[str], below: str) -> None:
    path = posixpath.normpath(posixpath.join(folder, name))
    good = [text.strip() for text in texts if text.strip()]
    if name.startswith("/") or path.startswith("../") or "://" in name:
        captions.rejects.append(Reject(place, "unsafe_name", f"{name!r} leads out of the source"))
    elif not good:
        captions.rejects.append(Reject(place, "bad_metadata", f"no caption for {name}"))
    elif not below or path.startswith(f"{below}/"):
        captions.by_name.setdefault(path, []).extend(good)


def _jsonl_entries(
    text: str, place: str, config: CorpusConfig, captions: Captions
) -> Iterator[tuple[str, str, list[str]]]:
    # At line feeds alone: a caption may have other characters that end a line, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row[_column(row, config.image_column, FILE_COLUMNS)]
            texts = row[_column(row, config.text_column, TEXT_COLUMNS)]
            if not isinstance(name, str):
                raise TypeError(f"file name {name!r}")
            yield f"{place}:{number}", name, _texts(texts)
        except (ValueError, KeyError, TypeError) as error:
            captions.rejects.append(Reject(f"{place}:{number}", "bad_metadata", str(error)))


def _csv_entries(text: str, place: str, config: CorpusConfig) -> Iterator[tuple[str, str, list[str]]]:
    known = {*FILE_COLUMNS, *TEXT_COLUMNS, config.image_column or "", config.text_column or ""}
    rows = csv_rows(text, known)
    image, caption = _table_columns(rows.fieldnames or [], place, config)
    for row in rows:
        yield f"{place}:{rows.line_num}", row[image] or "", _texts(row[caption] or "")


def _parquet_entries(
    content: bytes, place: str, config: CorpusConfig, captions: Captions
) -> Iterator[tuple[str, str, list[str]]]:
    try:
        table = pq.ParquetFile(pa.BufferReader(content))
        image, caption = _table_columns(table.schema_arrow.names, place, config)
        rows = (row for batch in table.iter_batches(columns=[image, caption]) for row in batch.to_pylist())
        for number, row in enumerate(rows):
            if isinstance(row[image], str) and (row[caption] is None or _is_texts(row[caption])):
                yield f"{place}:{number}", row[image], _texts(row[caption] or "")
            else:
                detail = f"expected a file name and a caption, found {row[image]!r} and {row[caption]!r}"
                captions.rejects.append(Reject(f"{place}:{number}", "bad_metadata", detail[:200]))
    except pa.ArrowException as error:
        raise UsageError(f"expected a Parquet table in {place}, found something else ({error})") from None


def _table_columns(names: Sequence[str], place: str, config: CorpusConfig) -> tuple[str, str]:
    """The columns of file name and caption; raises UsageError."""
    header = dict.fromkeys(names)
    try:
        return (
            _column(header, config.image_column, FILE_COLUMNS), _column(header, config.text_column, TEXT_COLUMNS),
        )  # fmt: skip
    except KeyError as error:
        raise UsageError(f"{place}: {error.args[0]}; set corpus.image_column and corpus.text_column") from None


def _coco_entries(text: str, place: str, captions: Captions) -> Iterator[tuple[str, str, list[str]]]:
    try:
        document = json.loads(text)
        names = {image["id"]: str(image["file_name"]) for image in document["images"]}
        found: dict[str, list[str]] = {name: [] for name in names.values()}
        for annotation in document["annotations"]:
            if annotation["image_id"] in names:
                found[names[annotation["image_id"]]] += _texts(annotation["caption"])
            else:
                detail = f"caption of image {annotation['image_id']}, which is not listed"
                captions.rejects.append(Reject(f"{place}:{annotation.get('id')}", "missing_image", detail))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"expected COCO captions (images, annotations) in {place}, found something else ({error!r})"
        ) from None
    yield from ((place, name, texts) for name, texts in found.items())


def _coco_image_folder(url: str, folder: str, below: str, entries: list[tuple[str, str, list[str]]]) -> str:
    """Where COCO's pictures are: file names there are relative to a folder the JSON does not name."""
    for candidate in (below, folder, "", "images", posixpath.join("images", below)):
        if any(storage.exists(storage.join(url, candidate, name)) for _, name, _ in entries[:3]):
            return candidate
    return below


def _coco_names(names: list[str], split: str) -> list[str]:
    found = {name: match[1] for name in names if (match := COCO_NAME.match(name))}
    pattern = SPLIT_NAMES.get(split)
    return [name for name, part in found.items() if not pattern or pattern.match(part)] or list(found)[:1]


def _column(row: dict[str, Any], wanted: str | None, usual: tuple[str, ...]) -> str:
    for name in (wanted,) if wanted else usual:
        if name in row:
            return name
    raise KeyError(f"expected a column {wanted or ' or '.join(usual[:3])}, found {', '.join(map(str, row))}")


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if _is_texts(value):
        return value
    raise TypeError(f"expected a caption or a list of them, found {type(value).__name__}")


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


class CaptionsFormat(SourceFormat):
    """A folder of pictures with a captions file."""

    name = "captions"
    asked = 3

    def detects(self, look: Look) -> bool:
        if look.file is not None:
            return look.file_ends((".jsonl", ".csv", ".tsv", ".json")) or is_captions_table(look.file)
        return any(map(is_captions_table, look.places)) or any(
            (name in USUAL_NAMES and name not in TABLE_NAMES) or COCO_NAME.match(name) for name in look.names
        )

    def list(self, source: SourceConfig, split: str, config: CorpusConfig, staging: Staging) -> Listing:
        return list_captions(source.url, split, config)


SOURCES.add("captions", CaptionsFormat())
