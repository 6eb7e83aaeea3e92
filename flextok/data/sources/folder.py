"""Folders of pictures: flat, nested, one folder a class, with or without train/ and val/ above."""

import polars as pl

from flextok import storage
from flextok.data.sources.files import IMAGE_ENDINGS, FolderReader
from flextok.data.sources.listing import LISTING_SCHEMA, Listing
from flextok.data.sources.walk import Walk, require_split, split_folders, top_folders, walk

ENDING = r"\.[A-Za-z0-9]{1,5}$"


def list_folder(url: str, split: str, format: str) -> Listing:
    """The pictures of a folder; `format` "imagenet" takes the first folder for the class, "auto" decides by the layout."""
    folders = top_folders(url)
    splits = split_folders(folders)
    require_split(splits, split, url)
    below = splits[split] if splits and split != "all" else ""
    found = walk(url, below)
    prefixes = tuple(splits.values())
    frame = listing_frame(found, prefixes)
    with_classes = format == "imagenet" or (format == "auto" and _one_folder_a_class(frame))
    classes = _classes(url, folders, splits) if with_classes else None
    reader = FolderReader(url, not storage.is_local(url), with_classes, prefixes)
    return Listing(frame, reader, found.rejects, classes, has_splits=bool(splits))


def listing_frame(found: Walk, split_prefixes: tuple[str, ...]) -> pl.DataFrame:
    """A walk as a listing; keys are made of the names without split folder and ending."""
    columns = {"name": found.names, "size": found.sizes, "stamp": found.stamps}
    frame = pl.DataFrame(columns, schema={name: LISTING_SCHEMA[name] for name in columns})
    inner = pl.col("name")
    for prefix in split_prefixes:
        inner = inner.str.strip_prefix(f"{prefix}/")
    frame = frame.with_columns(base=inner.str.replace(ENDING, ""), where=pl.lit(None, pl.String))
    return frame.select(list(LISTING_SCHEMA)).cast(LISTING_SCHEMA)  # pyright: ignore[reportArgumentType]


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
