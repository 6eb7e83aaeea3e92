"""Pictures as people have them: a folder of files, or an `.npz` as ADM's evaluator takes it. All go through the one crop."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from flextok import storage
from flextok.data import npz
from flextok.data.images import DEFAULT_LIMITS, ImageError, center_crop, decode
from flextok.data.sources.base import InputError
from flextok.data.sources.files import is_image_name, read_file
from flextok.data.sources.walk import walk
from flextok.errors import UsageError

BATCH = 64
READERS = 4
LOSSLESS = "lossless"
KEPT_EXACTLY = ("png", "bmp", "npz")
"""Formats that give back the pixels they were given."""


@dataclass(frozen=True)
class Crop:
    """Where all pictures go: to `size_px` squares; `from_size` is set where each must be such a square already."""

    size_px: int
    from_size: str = ""
    """Which picture gave the size."""

    def __call__(self, picture: Image.Image | np.ndarray, name: str) -> np.ndarray:
        """uint8 [size_px, size_px, 3]; raises UsageError for another size where there must be no other."""
        width, height = picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]
        if self.from_size and (width, height) != (self.size_px, self.size_px):
            raise UsageError(
                f"expected pictures of one size, found {self.size_px}x{self.size_px} in {self.from_size} and "
                f"{width}x{height} in {name}; say with --size to which size all are to be cropped"
            )
        return center_crop(picture, self.size_px)


class Unusable(NamedTuple):
    """A picture that cannot be measured, and why."""

    name: str
    why: str


class Looked(NamedTuple):
    """A picture after the crop; `format` is its file's, by content."""

    name: str
    pixels_HWC: np.ndarray
    format: str

    @property
    def sha256(self) -> str:
        """Of its pixels, which are what is measured."""
        return hashlib.sha256(self.pixels_HWC.tobytes()).hexdigest()


class FolderPart(NamedTuple):
    """Some files of a folder."""

    url: str
    names: Sequence[str]

    def look(self, crop: Crop) -> list[Looked | Unusable]:
        """Each of them, in this order."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(lambda name: self._look(name, crop), self.names))

    def _look(self, name: str, crop: Crop) -> Looked | Unusable:
        try:
            decoded = decode(read_file(self.url, name, 0, DEFAULT_LIMITS.max_bytes), DEFAULT_LIMITS)
        except (ImageError, InputError) as error:
            return Unusable(name, str(error))
        return Looked(name, crop(decoded.image, storage.join(self.url, name)), decoded.ext)


class ArrayPart(NamedTuple):
    """Some pictures of an `.npz`."""

    url: str
    names: Sequence[str]
    images_BHWC: np.ndarray

    def look(self, crop: Crop) -> list[Looked | Unusable]:
        """Each of them, in this order."""
        pairs = zip(self.names, self.images_BHWC, strict=True)
        return [Looked(name, crop(image, self.url), "npz") for name, image in pairs]


class Folder:
    """Pictures below a folder, by what their files are called; other files and hidden ones are left alone."""

    kind = "folder"

    def __init__(self, url: str):
        self.url = storage.absolute(url)
        found = walk(self.url)
        self.names = sorted(filter(is_image_name, found.names))
        self.unusable = [
            Unusable(reject.source, f"{reject.reason}: {reject.detail}")
            for reject in found.rejects
            if reject.reason != "hidden_file"
        ]

    def first_size(self) -> tuple[int, int]:
        """Width and height of the first picture that decodes."""
        for name in self.names:
            try:
                first = decode(read_file(self.url, name, 0, DEFAULT_LIMITS.max_bytes), DEFAULT_LIMITS)
            except (ImageError, InputError):
                continue
            return first.width, first.height
        raise UsageError(f"expected pictures in {self.url}, found {len(self.names)} files, none of which decodes")

    def parts(self, names: Sequence[str]) -> Iterator[FolderPart]:
        """Its pictures `names`, in this order."""
        for start in range(0, len(names), BATCH):
            yield FolderPart(self.url, names[start : start + BATCH])


class Arrays:
    """The pictures of an `.npz`, named by their places, and what it says of the features of others."""

    kind = "npz"
    unusable: Sequence[Unusable] = ()

    def __init__(self, url: str):
        self.url = storage.absolute(url)
        self.file = npz.NpzFile(self.url)
        self.names = [f"{index:06d}" for index in range(self.file.num_pictures)]

    def first_size(self) -> tuple[int, int]:
        """Width and height of its pictures."""
        return self.file.picture_size

    def parts(self, names: Sequence[str]) -> Iterator[ArrayPart]:
        """Its pictures `names`, in its own order."""
        wanted, start = set(names), 0
        for images in self.file.pictures(BATCH):
            here = self.names[start : start + len(images)]
            start += len(images)
            chosen = [place for place, name in enumerate(here) if name in wanted]
            if chosen:
                yield ArrayPart(self.url, [here[place] for place in chosen], images[chosen])


Given = Folder | Arrays


def open_given(url: str) -> Given:
    """The pictures at `url`; raises UsageError where nothing is there, or nothing that can be read."""
    if not storage.exists(url):
        raise UsageError(f"expected a folder of pictures or an .npz file, found nothing at {url}; check the path")
    return Arrays(url) if url.endswith(".npz") else Folder(url)


def file_format(formats: set[str]) -> str:
    """What the protocol says of the files that pictures came in: a lossy one leaves its traces in every number."""
    return ", ".join(sorted({LOSSLESS if each in KEPT_EXACTLY else each for each in formats}))
