"""ADM's `.npz` files: pictures as `arr_0`, uint8 [N, H, W, 3], and statistics of features as pairs such as `mu`, `sigma`.

What their evaluator (Dhariwal & Nichol 2021, guided-diffusion/evaluations) takes as samples and as a reference. Pictures
pass in a stream, so that memory holds some of them; nothing in such a file is ever unpickled.
"""

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from flextok import storage
from flextok.data.images import DEFAULT_LIMITS
from flextok.errors import UsageError

PICTURES = "arr_0"
ENDING = ".npy"
WIDEST = 16_384
"""Features of the largest covariance that is read: 2 GB in float64."""
ASYMMETRY = 1e-3
"""Of a covariance, at most, in parts of its largest variance: some are stored in float16."""
BATCH_BYTES = 2**28
"""Of pictures that are in memory at once."""
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


class Array(NamedTuple):
    """What a file says of one of its arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype


class NpzFile:
    """The arrays in a file. Opening it reads what they are; raises UsageError where it is damaged or holds anything else."""

    def __init__(self, url: str):
        self.url = url
        self.arrays = {name: self._described(name) for name in self._names()}
        if PICTURES in self.arrays:
            self._require_pictures(self.arrays[PICTURES])

    @property
    def num_pictures(self) -> int:
        """Of `arr_0`; 0 where there is none."""
        return self.arrays[PICTURES].shape[0] if PICTURES in self.arrays else 0

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the pictures."""
        _, height, width, _ = self.arrays[PICTURES].shape
        return width, height

    def pictures(self, batch_size: int) -> Iterator[np.ndarray]:
        """The pictures, uint8 [at most batch_size, H, W, 3], in their order."""
        total, *shape = self.arrays[PICTURES].shape
        batch_size = min(batch_size, max(1, BATCH_BYTES // math.prod(shape)))
        with self._opened(PICTURES) as (_, stream):
            for start in range(0, total, batch_size):
                count = min(batch_size, total - start)
                content = self._read(stream, count * math.prod(shape))
                yield np.frombuffer(content, np.uint8).reshape(count, *shape)

    def statistics(self, mean: str, covariance: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean [D] and covariance [D, D] in float64 by their names, None where the file has neither.

        Raises UsageError where only one of them is there, or they are no finite statistics of one width, or no covariance.
        """
        if not {mean, covariance} & self.arrays.keys():
            return None
        shapes = [self.arrays[name].shape if name in self.arrays else None for name in (mean, covariance)]
        width = shapes[0][0] if shapes[0] else 0
        if shapes != [(width,), (width, width)] or width > WIDEST:
            raise UsageError(
                f"expected {mean} [D] and {covariance} [D, D] of at most {WIDEST:,} features in {self.url}, "
                f"found {shapes[0]} and {shapes[1]}; take another file"
            )
        found = self._whole(mean), self._whole(covariance)
        if not all(np.isfinite(each).all() for each in found):
            raise UsageError(f"expected finite {mean} and {covariance} in {self.url}, found others; take another file")
        if not _may_be_covariance(found[1]):
            raise UsageError(
                f"expected {covariance} in {self.url} as a covariance, symmetric and with no negative variance, found another "
                "matrix; take another file"
            )
        return found

    def _names(self) -> list[str]:
        try:
            with storage.open_read(self.url) as file, zipfile.ZipFile(file) as archive:
                return [name.removesuffix(ENDING) for name in archive.namelist() if name.endswith(ENDING)]
        except DAMAGE as error:
            raise self._damaged(error) from None

    def _described(self, name: str) -> Array:
        with self._opened(name) as (array, _):
            return array

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[Array, IO[bytes]]]:
        """What an array is, and a stream that stands at its first number."""
        with storage.open_read(self.url) as file, zipfile.ZipFile(file) as archive:
            member = archive.getinfo(name + ENDING)
            try:
                stream = archive.open(member)
                array = self._header(name, stream)
                size = stream.tell() + math.prod(array.shape) * array.dtype.itemsize
            except DAMAGE as error:
                raise self._damaged(error) from None
            if size != member.file_size:
                raise self._damaged(f"{name} has {member.file_size} bytes instead of {size}")
            with stream:
                yield array, stream

    def _header(self, name: str, stream: IO[bytes]) -> Array:
        try:
            readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            shape, in_columns, dtype = readers[npy.read_magic(stream)](stream)
        except (ValueError, KeyError) as error:
            raise self._damaged(error) from None
        if dtype.hasobject:
            raise UsageError(
                f"expected arrays of numbers in {self.url}, found Python objects (a pickle) in {name}, which are never "
                "loaded; save it without them"
            )
        if in_columns and len(shape) > 1:
            raise UsageError(f"expected arrays in C order in {self.url}, found {name} in Fortran order; save it anew")
        return Array(shape, dtype)

    def _whole(self, name: str) -> np.ndarray:
        with self._opened(name) as (array, stream):
            if array.dtype.kind != "f":
                raise UsageError(f"expected floating point numbers as {name} in {self.url}, found {array.dtype}")
            content = self._read(stream, math.prod(array.shape) * array.dtype.itemsize)
        return np.frombuffer(content, array.dtype).reshape(array.shape).astype(np.float64)

    def _read(self, stream: IO[bytes], size: int) -> bytes:
        try:
            content = stream.read(size)
        except DAMAGE as error:
            raise self._damaged(error) from None
        if len(content) < size:
            raise self._damaged(f"{len(content)} bytes instead of {size}")
        return content

    def _require_pictures(self, array: Array) -> None:
        is_right = array.dtype == np.uint8 and len(array.shape) == 4 and array.shape[3] == 3
        if not is_right or not 0 < math.prod(array.shape[1:3]) <= DEFAULT_LIMITS.max_pixels:
            raise UsageError(
                f"expected pictures as {PICTURES} in {self.url}, uint8 [N, H, W, 3] of at most "
                f"{DEFAULT_LIMITS.max_pixels:,} pixels, found {array.dtype} {list(array.shape)}"
            )

    def _damaged(self, what: object) -> UsageError:
        return UsageError(
            f"expected an .npz file in {self.url}, found it damaged or cut off ({what}); copy or make it again"
        )


def _may_be_covariance(matrix_DD: np.ndarray) -> bool:
    variances_D = np.diagonal(matrix_DD)
    asymmetry = np.abs(matrix_DD - matrix_DD.T).max(initial=0.0)
    return bool((variances_D >= 0).all()) and asymmetry <= ASYMMETRY * variances_D.max(initial=0.0)


def write_pictures(url: str, shape: tuple[int, int, int, int], batches: Iterable[np.ndarray]) -> None:
    """Put `batches` of pictures, uint8 [B, H, W, 3] and together of `shape`, at `url` as `arr_0`, in a stream."""
    header = {"descr": npy.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    with (
        storage.atomic_write(url) as file,
        zipfile.ZipFile(file, "w") as archive,
        archive.open(zipfile.ZipInfo(PICTURES + ENDING), "w", force_zip64=True) as stream,
    ):
        npy.write_array_header_1_0(stream, header)
        for batch in batches:
            stream.write(np.ascontiguousarray(batch).tobytes())
