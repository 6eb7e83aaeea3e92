"""Copies of inputs that cannot be read at random: compressed tars and the pictures inside Parquet.

They are read once in a stream into the staging folder, which is what lets their samples be mixed over all
shards; the folder is removed when the corpus is finished, and used again by a run that goes on.
"""

import bz2
import gzip
import lzma
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flextok import storage
from flextok.data.sources.containers import Container
from flextok.digests import digest_of

LARGEST_EXPANSION = 100
SLACK_BYTES = 64 * 2**20
BLOCK = 1 << 16
OPENERS: Mapping[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
"""By the first bytes of a file; its name may tell nothing."""


@dataclass(frozen=True)
class Staging:
    """A folder for copies, on disk or on an object store."""

    folder: str

    def file(self, container: Container) -> str:
        """Where the copy of `container` belongs; its name changes when the container does."""
        return storage.join(self.folder, digest_of([container.name, container.size, container.stamp])[:24])

    def remove(self) -> None:
        """Delete all copies."""
        storage.remove(self.folder)


def readable_at_random(container: Container, staging: Staging) -> str:
    """The URL of `container`, or of a copy where its web server gives only whole files. Raises OSError."""
    fs, path = storage.filesystem(container.url)
    if "http" not in fs.protocol or fs.info(path).get("partial"):
        return container.url
    goal = f"{staging.file(container)}.whole"
    if not storage.exists(goal):
        with storage.open_read(container.url) as source, storage.atomic_write(goal) as file:
            shutil.copyfileobj(source, file, storage.CHUNK_BYTES)
    return goal


def opener_of(url: str) -> Callable[..., Any] | None:
    """What opens a compressed file, told by its first bytes; None for any other. Raises OSError."""
    with storage.open_read(url) as file:
        start = file.read(max(map(len, OPENERS)))
    return next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)


def decompressed(container: Container, opener: Callable[..., Any], goal: str) -> str:
    """A decompressed copy of `container` at `goal`, written in a stream and once.

    Of a damaged file everything before the damage is kept. Raises OSError, or ValueError when nothing could be
    kept or the copy grows beyond what pictures do.
    """
    if storage.exists(goal):
        return goal
    most = container.size * LARGEST_EXPANSION + SLACK_BYTES
    with storage.open_read(container.url) as packed, storage.atomic_write(goal) as file:
        written = 0
        plain = opener(packed, "rb")
        try:
            while chunk := plain.read(BLOCK):
                written += len(chunk)
                if written > most:
                    raise ValueError(f"grows to more than {LARGEST_EXPANSION} times its size: not pictures")
                file.write(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
            if written == 0:
                raise ValueError(f"does not decompress: {error}") from None
    return goal
