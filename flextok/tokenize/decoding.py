"""From stored pictures to crops, in threads or in processes of their own, which read what they decode.

Light to import: processes start fast.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from flextok.data import images
from flextok.data.config import ImageLimits
from flextok.data.sources.files import read_at
from flextok.runtime.processes import end_processes, start_processes
from flextok.tokenize.config import View
from flextok.tokenize.views import crop_view

T = TypeVar("T")

# Sharding has judged the pictures by the corpus' own limits; here only what cannot be decoded is refused.
ANY_SIZE = ImageLimits(min_side=1, max_aspect=1e9, max_pixels=170_000_000, max_bytes=2**30)
NICENESS = 5


class Place(NamedTuple):
    """Where a picture's bytes lie in its file, and their hash as the corpus recorded it (hex; None where it did not)."""

    offset: int
    size: int
    sha256: str | None


class Crops(NamedTuple):
    """What became of a picture: `pixels` uint8 [V, S, S, 3], one for each view; its size as displayed; its hash."""

    pixels: np.ndarray
    width: int
    height: int
    sha256: bytes


class Undecodable(NamedTuple):
    """Why there are no crops of a picture."""

    reason: str
    detail: str
    damaged: bool
    """Its bytes are not those of which the hash was recorded."""


def decode_picture(image: bytes, recorded: str | None, size_px: int, views: Sequence[View]) -> Crops | Undecodable:
    """The crops of a picture, or why there are none.

    Bytes that differ from the hash `recorded` at sharding (hex) are refused even when they decode: their pixels are not
    the corpus' pixels.
    """
    sha256 = hashlib.sha256(image).digest()
    if recorded is not None and recorded != sha256.hex():
        return Undecodable("broken_image", "its bytes differ from the hash recorded in the corpus", damaged=True)
    try:
        decoded = images.decode(image, ANY_SIZE)
    except images.ImageError as error:
        return Undecodable(error.reason, error.detail, damaged=False)
    pixels = np.stack([crop_view(decoded.image, size_px, view) for view in views])
    return Crops(pixels, decoded.width, decoded.height, sha256)


def read_places(url: str, places: Sequence[Place]) -> bytes:
    """What the file `url` holds from the first of `places` to the end of the last, which follow each other.

    Raises OSError when it cannot be read, IntegrityError when it ends before.
    """
    start, end = places[0].offset, places[-1].offset + places[-1].size
    return read_at(url, start, end - start)


def decode_content(
    content: bytes, places: Sequence[Place], size_px: int, views: Sequence[View]
) -> list[Crops | Undecodable]:
    """`decode_picture` of all `places`, of which `read_places` gave the `content`."""
    whole, found = memoryview(content), []
    for offset, size, recorded in places:
        start = offset - places[0].offset
        found.append(decode_picture(bytes(whole[start : start + size]), recorded, size_px, views))
    return found


def decode_places(url: str, places: Sequence[Place], size_px: int, views: Sequence[View]) -> list[Crops | Undecodable]:
    """`read_places`, then `decode_content`."""
    return decode_content(read_places(url, places), places, size_px, views)


class Decoders(Protocol):
    """What decodes: DecodeThreads or DecodeProcesses."""

    count: int

    def submit(self, function: Callable[..., T], /, *arguments: Any) -> Future[T]:
        """The function's result, some time."""
        ...


class DecodeThreads(ThreadPoolExecutor):
    """Threads that decode in this process: for few pictures, where the start of processes would not pay."""

    def __init__(self, count: int):
        super().__init__(count)
        self.count = count


class DecodeProcesses:
    """Processes that decode beside the model without its Python lock. They start at once, and nobody waits for them.

    When one is lost (killed, or crashed by a picture), what was under way raises BrokenProcessPool, and the next call
    starts new ones.
    """

    def __init__(self, count: int):
        self.count = count
        self._lock = threading.Lock()
        self._pool = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_processes(self._pool)

    def submit(self, function: Callable[..., T], /, *arguments: Any) -> Future[T]:
        """The function's result, some time; raises BrokenProcessPool when new processes end at once too."""
        with self._lock:
            try:
                return self._pool.submit(function, *arguments)
            except BrokenProcessPool:
                end_processes(self._pool)
                self._pool = self._start()
                return self._pool.submit(function, *arguments)

    def _start(self) -> ProcessPoolExecutor:
        pool = start_processes(self.count, _step_back, ())
        for _ in range(self.count):  # each call to a pool that has no idle process starts one
            pool.submit(decode_content, b"", (), 1, ())
        return pool


def _step_back() -> None:
    """Where cores are shared the model goes first: decoders work ahead of it and wait for it in the end."""
    os.nice(NICENESS)
