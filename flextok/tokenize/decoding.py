"""From the bytes of pictures to crops, in threads or in processes of their own. Light to import: processes start fast."""

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
from flextok.processes import end_processes, start_processes
from flextok.tokenize.config import View
from flextok.tokenize.views import crop_view

T = TypeVar("T")

# Sharding has judged the pictures by the corpus' own limits; here only what cannot be decoded is refused.
ANY_SIZE = ImageLimits(min_side=1, max_aspect=1e9, max_pixels=170_000_000, max_bytes=2**30)
NICENESS = 5


class StoredPicture(NamedTuple):
    """A picture's bytes and their hash as the corpus recorded it, in hex; None where it did not."""

    image: bytes
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


def decode_picture(picture: StoredPicture, size_px: int, views: Sequence[View]) -> Crops | Undecodable:
    """The crops of a picture, or why there are none.

    Bytes that differ from the hash taken at sharding are refused even when they decode: their pixels are not the
    corpus' pixels.
    """
    sha256 = hashlib.sha256(picture.image).digest()
    if picture.sha256 is not None and picture.sha256 != sha256.hex():
        return Undecodable("broken_image", "its bytes differ from the hash recorded in the corpus")
    try:
        decoded = images.decode(picture.image, ANY_SIZE)
    except images.ImageError as error:
        return Undecodable(error.reason, error.detail)
    pixels = np.stack([crop_view(decoded.image, size_px, view) for view in views])
    return Crops(pixels, decoded.width, decoded.height, sha256)


def decode_pictures(
    pictures: Sequence[StoredPicture], size_px: int, views: Sequence[View]
) -> list[Crops | Undecodable]:
    """`decode_picture` of several: what is sent to a decoder at once."""
    return [decode_picture(picture, size_px, views) for picture in pictures]


class Decoders(Protocol):
    """What runs `decode_pictures`: DecodeThreads or DecodeProcesses."""

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
            pool.submit(decode_pictures, (), 1, ())
        return pool


def _step_back() -> None:
    """Where cores are shared the model goes first: decoders work ahead of it and wait for it in the end."""
    os.nice(NICENESS)
