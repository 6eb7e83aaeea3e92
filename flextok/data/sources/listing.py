"""What the parent process knows of a source: the listing of its inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from flextok.data.rejects import Reject
from flextok.data.sources.base import Reader
from flextok.digests import digest_of

LISTING_SCHEMA: Mapping[Any, Any] = {
    "name": pl.String, "base": pl.String, "size": pl.Int64, "stamp": pl.String, "where": pl.String,
}  # fmt: skip
MEMBER_COLUMNS = {"fields": pl.lit(0, pl.Int64), "group": pl.lit(None, pl.String)}
VIEWS_SCHEMA: Mapping[Any, Any] = {**LISTING_SCHEMA, "fields": pl.Int64, "group": pl.String}


@dataclass
class Listing:
    """All inputs of one source and split."""

    frame: pl.DataFrame
    """`name` (unique, relative to the source), `base` (what its key is made of), `size` in bytes (0: unknown),
    `stamp` (changes when the content may have changed; "" if unknown), `where` (the reader's note, or null). And, where
    a source has more to say than nothing: `fields` (members that are counted with it), `group` (inputs of one group
    fall into one split; null: by its name)."""
    reader: Reader
    rejects: list[Reject]
    """Inputs that were refused without being read."""
    classes: list[str] | None
    """Names of the classes by id, the same for all splits; None without names."""
    has_splits: bool
    """False: the source knows no splits and `frame` holds everything, to be divided by `val_fraction`."""
    fields: int = 0
    """Members that go with rejects, or hold for the whole source, as a captions file does."""

    def __post_init__(self) -> None:
        missing = [default.alias(name) for name, default in MEMBER_COLUMNS.items() if name not in self.frame.columns]
        self.frame = self.frame.with_columns(missing).select(list(VIEWS_SCHEMA))


def listing_digest(listing: Listing) -> str:
    """Changes when an input of the listing may have: names, sizes and stamps, rejects, classes."""
    rows = listing.frame.select(pl.concat_str("name", pl.col("size").cast(pl.String), "stamp", separator="|"))
    return digest_of([sorted(rows.to_series().to_list()), sorted(listing.rejects), listing.classes])
