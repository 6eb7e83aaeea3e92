"""A shard of text features: one safetensors file for each image shard, with the features of all captions of its images.

Tensors: `features` float16 [T, width], the tokens of all captions one after another, unpadded; `token_ends` int64
[captions], where each caption's tokens end; `caption_ends` int64 [images], where each image's captions end; `keys` uint8,
the images' keys as UTF-8, and `key_ends` int64 [images]. So a caption is one range of bytes: a training reads those that
it draws and no others. Every image has a caption at least, an empty one where it has none.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from typing import IO, Any

import numpy as np

from flextok import storage
from flextok.data.corpus.crops import read_at
from flextok.data.tokens.files import DamagedFile
from flextok.data.tokens.writer import ShardRecord
from flextok.digests import digest_of
from flextok.errors import IntegrityError
from flextok.version import __version__

FORMAT = "flextok.text_features/1"
SUFFIX = ".safetensors"
HEADER_BYTES = 16_384
"""Room for the header, which is known last and stands first; blanks fill it up."""
TYPES = {"F16": np.dtype("<f2"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}


@dataclasses.dataclass(frozen=True)
class TextMeta:
    """What a shard says of its features, beside their number."""

    encoder: str
    """Digest of the text encoder."""
    encoder_name: str
    width: int
    source: str = ""
    """Name of the image shard."""
    source_sha256: str = ""
    fingerprint: str = ""
    """Hash of all that decides the content of this shard."""
    code_version: str = __version__

    def identity(self) -> dict[str, Any]:
        """What must be equal for two shards to be read as one store."""
        return {"encoder": self.encoder, "width": self.width}


@dataclasses.dataclass(frozen=True)
class StoredFeatures:
    """A shard as its header describes it. `tensors` are types, shapes and places in the file by name."""

    url: str
    meta: TextMeta
    content_sha256: str
    tensors: dict[str, tuple[np.dtype, tuple[int, ...], int]]
    bytes: int

    @property
    def name(self) -> str:
        """Stem of the file."""
        return self.url.rpartition("/")[2].removesuffix(SUFFIX)

    @property
    def images(self) -> int:
        """Images whose captions it has."""
        return self.tensors["caption_ends"][1][0]

    @property
    def captions(self) -> int:
        """Captions of all of them."""
        return self.tensors["token_ends"][1][0]

    def read(self, name: str) -> np.ndarray:
        """One tensor, whole."""
        kind, shape, start = self.tensors[name]
        content = read_at(self.url, start, _bytes(kind, shape)) if _bytes(kind, shape) else b""
        return np.frombuffer(content, kind).reshape(shape)

    def keys(self) -> list[str]:
        """Keys of the images, in their order."""
        content = self.read("keys").tobytes()
        ends = self.read("key_ends").tolist()
        return [content[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def content(self) -> str:
        """The content hash, computed anew from all bytes."""
        content = _ContentHash(self.meta)
        with storage.open_read(self.url) as file:
            for name in TENSORS:
                kind, shape, start = self.tensors[name]
                file.seek(start)
                left = _bytes(kind, shape)
                while left and (chunk := file.read(min(left, storage.CHUNK_BYTES))):
                    content.update(name, chunk)
                    left -= len(chunk)
        return content.hexdigest()


TENSORS = ("features", "token_ends", "caption_ends", "key_ends", "keys")
"""In their order in the file: the features first, as they are streamed."""


class _ContentHash:
    """sha256 of what a shard holds, each tensor a stream of its own."""

    def __init__(self, meta: TextMeta):
        self._identity = meta.identity()
        self._streams = {name: hashlib.sha256() for name in TENSORS}

    def update(self, name: str, content: bytes) -> None:
        self._streams[name].update(content)

    def hexdigest(self) -> str:
        streams = {name: stream.hexdigest() for name, stream in self._streams.items()}
        return digest_of({"identity": self._identity, "tensors": streams})


def write_feature_shard(url: str, meta: TextMeta, images: Iterable[tuple[str, Sequence[np.ndarray]]]) -> ShardRecord:
    """Write the features of `images`, each a key and a float array [n, width] a caption, as the shard `url`.

    Memory holds an image at a time. When the iterable raises, nothing appears at `url`. Raises IntegrityError where
    features are not finite or too large for float16.
    """
    content = _ContentHash(meta)
    keys, key_ends, caption_ends, token_ends = bytearray(), list[int](), list[int](), list[int]()
    tokens = 0
    with storage.atomic_write(url) as file:
        file.write(b" " * HEADER_BYTES)
        for key, captions in images:
            for caption in captions:
                stored = _as_stored(caption, key)
                content.update("features", stored)
                file.write(stored)
                tokens += len(caption)
                token_ends.append(tokens)
            caption_ends.append(len(token_ends))
            keys += key.encode()
            key_ends.append(len(keys))
        rest = {
            "token_ends": np.array(token_ends, "<i8"),
            "caption_ends": np.array(caption_ends, "<i8"),
            "key_ends": np.array(key_ends, "<i8"),
            "keys": np.frombuffer(bytes(keys), np.uint8),
        }
        for name, values in rest.items():
            content.update(name, values.tobytes())
            file.write(values.tobytes())
        shapes = {"features": ("F16", (tokens, meta.width))}
        shapes |= {name: ("U8" if name == "keys" else "I64", values.shape) for name, values in rest.items()}
        size = file.tell()
        file.seek(0)
        file.write(_header(meta, shapes, content.hexdigest()))
        file.flush()
        file_sha256 = storage.sha256_file(file.name)
    return ShardRecord(
        shard=url.rpartition("/")[2].removesuffix(SUFFIX),
        rows=len(caption_ends),
        sha256=file_sha256,
        source_sha256=meta.source_sha256,
        content_sha256=content.hexdigest(),
        bytes=size,
        rejects=0,
    )


def _as_stored(caption: np.ndarray, key: str) -> bytes:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(caption.astype("<f2"))
    if not np.isfinite(stored).all():
        raise IntegrityError(f"expected features that float16 can hold, found others for a caption of {key}")
    return stored.tobytes()


def _header(meta: TextMeta, shapes: dict[str, tuple[str, tuple[int, ...]]], content_sha256: str) -> bytes:
    """The first HEADER_BYTES of the file: the length of what follows, and JSON with blanks behind it."""
    described = {name: str(value) for name, value in dataclasses.asdict(meta).items()}
    entries: dict[str, Any] = {"__metadata__": {"format": FORMAT, "content_sha256": content_sha256, **described}}
    start = 0
    for name, (kind, shape) in shapes.items():
        end = start + _bytes(TYPES[kind], shape)
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    return (HEADER_BYTES - 8).to_bytes(8, "little") + text.ljust(HEADER_BYTES - 8)


def read_feature_shard(url: str) -> StoredFeatures:
    """What the header of the shard `url` says; raises DamagedFile when it cannot be read or the file is cut short,
    IntegrityError when it holds something else."""
    size = storage.size(url)
    with storage.open_read(url) as file:
        found = _read_header(file, url)
    metadata = found.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.pop("format", None) != FORMAT:
        raise IntegrityError(f"expected text features ({FORMAT}) in {url}, found another file; give another folder")
    try:
        content_sha256 = metadata.pop("content_sha256")
        meta = TextMeta(**{**metadata, "width": int(metadata["width"])})
        tensors = {name: _placed(found[name]) for name in TENSORS}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"expected the tensors of text features in {url}, found damage ({error!r})") from None
    end = max(start + _bytes(kind, shape) for kind, shape, start in tensors.values())
    if size != end:
        raise DamagedFile(f"expected {end} bytes in {url}, found {size}; run `flextok encode-text` again")
    return StoredFeatures(url, meta, content_sha256, tensors, size)


def _placed(entry: dict[str, Any]) -> tuple[np.dtype, tuple[int, ...], int]:
    return TYPES[entry["dtype"]], tuple(map(int, entry["shape"])), HEADER_BYTES + int(entry["data_offsets"][0])


def _bytes(kind: np.dtype, shape: tuple[int, ...]) -> int:
    return kind.itemsize * math.prod(shape)


def _read_header(file: IO[bytes], url: str) -> dict[str, Any]:
    start = file.read(HEADER_BYTES)
    try:
        if int.from_bytes(start[:8], "little") != HEADER_BYTES - 8:
            raise ValueError("another length")
        header = json.loads(start[8:])
        return dict(header)
    except (TypeError, ValueError, RecursionError) as error:
        raise DamagedFile(f"expected a header of text features in {url}, found damage ({error})") from None
