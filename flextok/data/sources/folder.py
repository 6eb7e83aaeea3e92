"""Folders of pictures: flat, nested, one folder a class, with or without train/ and val/ above.

Texts beside the pictures (`a.jpg`, `a.txt`, `a.json`, `a.cls`) are theirs by the rule in `stems`, as in img2dataset's
output of files. Any other file is read as a picture, and counted as `other_file` when it is none.
"""

import posixpath
from collections import Counter

import polars as pl

from flextok import storage
from flextok.data.config import CorpusConfig, SourceConfig
from flextok.data.rejects import Reject
from flextok.data.sources.files import IMAGE_ENDINGS, FolderReader
from flextok.data.sources.img2dataset import compare_records, records_by_shard
from flextok.data.sources.listing import LISTING_SCHEMA, VIEWS_SCHEMA, Listing
from flextok.data.sources.look import Look
from flextok.data.sources.registry import SOURCES, SourceFormat
from flextok.data.sources.staging import Staging
from flextok.data.sources.stems import index_texts, root_of, split_ending, texts_of
from flextok.data.sources.walk import Walk, require_split, split_folders, top_folders, walk
from flextok.digests import canonical_json, digest_of

ENDING = r"\.[A-Za-z0-9]{1,5}$"


def list_folder(url: str, split: str, format: str) -> Listing:
    """The pictures of a folder; `format` "imagenet" takes the first folder for the class, "auto" decides by the layout."""
    folders = top_folders(url)
    splits = split_folders(folders)
    require_split(splits, split, url)
    below = splits[split] if splits and split != "all" else ""
    found = walk(url, below)
    prefixes = tuple(splits.values())
    frame, missing, records = _without_records(url, listing_frame(found, prefixes))
    frame = _with_texts(frame)
    # The folders of img2dataset are its shards, and no classes.
    with_classes = format == "imagenet" or (format == "auto" and not records and _one_folder_a_class(frame))
    classes = _classes(url, folders, splits) if with_classes else None
    reader = FolderReader(url, not storage.is_local(url), with_classes, prefixes)
    return Listing(frame, reader, found.rejects + missing, classes, bool(splits), records)


def listing_frame(found: Walk, split_prefixes: tuple[str, ...]) -> pl.DataFrame:
    """A walk as a listing; keys are made of the names without split folder and ending."""
    columns = {"name": found.names, "size": found.sizes, "stamp": found.stamps}
    frame = pl.DataFrame(columns, schema={name: LISTING_SCHEMA[name] for name in columns})
    inner = pl.col("name")
    for prefix in split_prefixes:
        inner = inner.str.strip_prefix(f"{prefix}/")
    frame = frame.with_columns(base=inner.str.replace(ENDING, ""), where=pl.lit(None, pl.String))
    return frame.select(list(LISTING_SCHEMA)).cast(LISTING_SCHEMA)  # pyright: ignore[reportArgumentType]


def _without_records(url: str, frame: pl.DataFrame) -> tuple[pl.DataFrame, list[Reject], int]:
    """`frame` without img2dataset's records of its folders, what they say to be missing, and their number."""
    names = frame["name"].to_list()
    records = records_by_shard(names)
    keys: dict[str, set[str]] = {folder: set() for folder in records}
    for name in names if records else ():
        folder, file = posixpath.split(name)
        if folder in keys and _is_picture(name):
            keys[folder].add(split_ending(file)[0])
    rejects: list[Reject] = []
    told: set[str] = set()
    count = 0
    for folder, pictures in keys.items():
        if pictures:
            missing, used = compare_records(url, folder, records[folder], folder, pictures, cut=False)
            rejects += missing
            told |= used | {reject.source for reject in missing}
            count += len(used)
    return frame.filter(pl.col("name").is_in(list(told)).not_()) if told else frame, rejects, count


def _with_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with the texts of each picture in its note, and without them as inputs of their own."""
    names = frame["name"].to_list()
    index = index_texts(names)
    if not index:
        return frame
    about = {
        name: (name, size, stamp)
        for name, size, stamp in frame.select("name", "size", "stamp").iter_rows()
        if not _is_picture(name)
    }
    roots = [root_of(split_ending(name)[0], index) if _is_picture(name) else None for name in names]
    pictures = Counter(roots)
    stamps, notes = frame["stamp"].to_list(), frame["where"].to_list()
    fields = [0] * len(names)
    groups: list[str | None] = [None] * len(names)
    used: set[str] = set()
    for i, (name, root) in enumerate(zip(names, roots, strict=True)):
        if root is None:
            continue
        own = split_ending(name)[0]
        texts = texts_of(own, index)
        notes[i] = canonical_json(
            {"texts": {kind: about[path][:2] for kind, path in texts.items()}, "view": own[len(root) + 1 :]}
        )
        stamps[i] = digest_of([stamps[i], [about[path] for _, path in sorted(texts.items())]])[:16]
        fields[i] = len(set(texts.values()) - used)
        groups[i] = root if pictures[root] > 1 else None
        used |= set(texts.values())
    columns = {"stamp": stamps, "where": notes, "fields": fields, "group": groups}
    series = [pl.Series(column, values, VIEWS_SCHEMA[column]) for column, values in columns.items()]
    return frame.with_columns(series).filter(pl.col("name").is_in(list(used)).not_())


def _is_picture(name: str) -> bool:
    return split_ending(name)[1] in IMAGE_ENDINGS


def _one_folder_a_class(frame: pl.DataFrame) -> bool:
    """True when all pictures lie exactly one folder deep (below the split), in two folders or more."""
    pictures = frame.filter(pl.col("name").str.to_lowercase().str.extract(r"\.([a-z0-9]+)$").is_in(list(IMAGE_ENDINGS)))
    if pictures.is_empty():
        return False
    parts = pictures["base"].str.split("/")
    return bool((parts.list.len() == 2).all()) and parts.list.first().n_unique() > 1


def _classes(url: str, folders: list[str], splits: dict[str, str]) -> list[str]:
    """Sorted class folders of all splits, so that an id means the same in each."""
    if not splits:
        return folders
    return sorted({name for folder in splits.values() for name in top_folders(storage.join(url, folder))})


class FolderFormat(SourceFormat):
    """Pictures in folders, "imagenet" with one folder a class; any other folder is this."""

    asked = 9

    def __init__(self, name: str):
        self.name = name

    def detects(self, look: Look) -> bool:
        return self.name == "folder" and look.file is None

    def list(self, source: SourceConfig, split: str, config: CorpusConfig, staging: Staging) -> Listing:
        return list_folder(source.url, split, source.format)


SOURCES.add("folder", FolderFormat("folder"))
SOURCES.add("imagenet", FolderFormat("imagenet"))
