"""What every source of pictures gives: a listing in the parent process, and readers for the workers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from flextok.data.rejects import Reject

LISTING_SCHEMA: Mapping[Any, Any] = {
    "name": pl.String,
    "base": pl.String,
    "size": pl.Int64,
    "stamp": pl.String,
    "where": pl.String,
}


@dataclass(frozen=True)
class RawInput:
    """One input as read: the picture's bytes and what the source says about it."""

    image: bytes
    label: int | str | None = None
    """A class id, or the name of a class."""
    label_keys: tuple[str, ...] = ()
    """Under which of these keys a label CSV may know it."""
    captions: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    """Further fields of the source, carried into the sample's JSON."""


class InputError(Exception):
    """An input that cannot be read; `reason` is one of the fixed reject reasons."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Reader(Protocol):
    """Reads inputs in a worker. Small, picklable, and free of the listing."""

    @property
    def remote(self) -> bool:
        """Whether reading waits for a network, so that several reads at once pay."""
        ...

    def read(self, name: str, size: int, where: str | None, max_bytes: int) -> RawInput:
        """The input listed as (name, size, where); raises InputError."""
        ...


@dataclass
class Listing:
    """All inputs of one source and split."""

    frame: pl.DataFrame
    """`name` (unique, relative to the source), `base` (what its key is made of), `size` in bytes (0: unknown),
    `stamp` (changes when the content is known to have changed, or ""), `where` (the reader's note, or null)."""
    reader: Reader
    rejects: list[Reject]
    """Inputs that were refused without being read."""
    classes: list[str] | None
    """Names of the classes by id, the same for all splits; None without names."""
    has_splits: bool
    """False: the source knows no splits and `frame` holds everything, to be divided by `val_fraction`."""


def redact(text: str) -> str:
    """`text` with the passwords and signed queries of any URLs in it left out, fit for logs and manifests."""
    text = re.sub(r"(\w+://)[^/\s@'\"]+@", r"\1", text)
    return re.sub(r"(\w+://[^\s?'\"]+)\?[^\s'\")]+", r"\1", text)
