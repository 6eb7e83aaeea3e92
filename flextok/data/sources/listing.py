"""What the parent process knows of a source: the listing of its inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from flextok.data.rejects import Reject
from flextok.data.sources.base import Reader

LISTING_SCHEMA: Mapping[Any, Any] = {
    "name": pl.String, "base": pl.String, "size": pl.Int64, "stamp": pl.String, "where": pl.String,
}  # fmt: skip


@dataclass
class Listing:
    """All inputs of one source and split."""

    frame: pl.DataFrame
    """`name` (unique, relative to the source), `base` (what its key is made of), `size` in bytes (0: unknown),
    `stamp` (changes when the content may have changed; "" if unknown), `where` (the reader's note, or null)."""
    reader: Reader
    rejects: list[Reject]
    """Inputs that were refused without being read."""
    classes: list[str] | None
    """Names of the classes by id, the same for all splits; None without names."""
    has_splits: bool
    """False: the source knows no splits and `frame` holds everything, to be divided by `val_fraction`."""
