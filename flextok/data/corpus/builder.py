"""One shard from its inputs: read, decode for real, write the tar, then its index. Runs in a worker process."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data import images
from flextok.data.config import ImageLimits
from flextok.data.corpus.layout import index_url, shard_url
from flextok.data.corpus.tar import TarWriter
from flextok.data.rejects import Reject
from flextok.data.sources.base import InputError, RawInput, Reader
from flextok.data.sources.files import is_image_name
from flextok.data.sources.labels import Labels
from flextok.digests import canonical_json
from flextok.runtime.ahead import ahead

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("ext", pa.string()), ("label", pa.int32()),
        ("text", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("sha256", pa.string()), ("source", pa.string()),
        ("phash", pa.uint64()),
    ]
)  # fmt: skip
SHARD_KEY = b"flextok.shard"
REJECTS_KEY = b"flextok.rejects"
READ_AHEAD = 8
JPEG_QUALITY = 95


class PlannedInput(NamedTuple):
    """One input of a shard, as planned."""

    reader: int
    key: str
    name: str
    """As listed by its reader."""
    source: str
    """As recorded: with the source's name before it where there are several."""
    size: int
    where: str | None


@dataclass(frozen=True)
class CorpusShardRecord:
    """What is stored beside a finished shard, in the metadata of its index file."""

    fingerprint: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardBuilder:
    """Everything a worker needs to make any shard of one corpus."""

    dest: str
    readers: tuple[Reader, ...]
    labels: Labels
    limits: ImageLimits
    resize_short_side: int | None
    perceptual_hashes: bool

    def build(self, shard: str, fingerprint: str, inputs: Sequence[PlannedInput]) -> CorpusShardRecord:
        """Write `shards/<shard>.tar`, then `index/<shard>.parquet`, which commits it. Raises OSError."""
        rows: list[tuple[Any, ...]] = []
        rejects: list[Reject] = []
        with storage.atomic_write(shard_url(self.dest, shard)) as file:
            tar = TarWriter(file)
            for planned, outcome in self._read_all(inputs):
                if isinstance(outcome, InputError):
                    rejects.append(Reject(planned.source, outcome.reason, outcome.detail))
                    continue
                try:
                    rows.append(self._add(tar, planned, outcome))
                except (images.ImageError, InputError) as error:
                    rejects.append(Reject(planned.source, _judged(error.reason, planned), error.detail))
            sha256 = tar.close()
        record = CorpusShardRecord(fingerprint, len(rows), tar.bytes, sha256)
        write_index(self.dest, shard, rows, record, rejects)
        return record

    def _add(self, tar: TarWriter, planned: PlannedInput, raw: RawInput) -> tuple[Any, ...]:
        info, phash = self._looked_at(raw.image)
        label = self.labels.resolve(raw, planned.reader)
        stored, extra = raw.image, {}
        if self.resize_short_side is not None and min(info.width, info.height) > self.resize_short_side:
            stored, info = self._resized(raw.image)
            extra = {"source_sha256": hashlib.sha256(raw.image).hexdigest()}
        sha256 = hashlib.sha256(stored).hexdigest()
        captions = [caption.strip() for caption in raw.captions if caption.strip()]
        meta = {
            "source": planned.source, "sha256": sha256, "width": info.width, "height": info.height, "label": label,
            "label_name": self.labels.name(label), "captions": captions, **extra,
        }  # fmt: skip
        if raw.view:
            meta["view"] = raw.view
        if raw.metadata:
            meta["metadata"] = raw.metadata
        offset = tar.add(f"{planned.key}.{info.ext}", stored)
        if label is not None:
            tar.add(f"{planned.key}.cls", str(label).encode())
        if captions:
            tar.add(f"{planned.key}.txt", captions[0].encode())
        tar.add(f"{planned.key}.json", canonical_json(meta).encode())
        text = captions[0] if captions else None
        return (
            planned.key, offset, len(stored), info.ext, label, text, info.width, info.height, sha256, planned.source, phash,
        )  # fmt: skip

    def _looked_at(self, raw: bytes) -> tuple[images.ImageInfo, int | None]:
        """What the picture is, and its perceptual hash if wanted."""
        if not self.perceptual_hashes:
            return images.inspect(raw, self.limits), None
        import imagehash

        decoded = images.decode(raw, self.limits)
        bits = imagehash.phash(decoded.image).hash
        phash = int.from_bytes(np.packbits(bits).tobytes(), "big")
        return images.ImageInfo(decoded.ext, decoded.width, decoded.height), phash

    def _resized(self, raw: bytes) -> tuple[bytes, images.ImageInfo]:
        assert self.resize_short_side is not None
        decoded = images.decode(raw, self.limits)
        image = images.resize_short_side(decoded.image, self.resize_short_side)
        file = io.BytesIO()
        # Lossless pictures stay lossless: JPEG would smear drawings and text.
        if decoded.ext in ("png", "gif", "bmp"):
            image.save(file, format="PNG")
            return file.getvalue(), images.ImageInfo("png", *image.size)
        image.save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
        return file.getvalue(), images.ImageInfo("jpg", *image.size)

    def read(self, planned: PlannedInput) -> RawInput | InputError:
        """An input, or why it is rejected."""
        try:
            return self.readers[planned.reader].read(planned.name, planned.size, planned.where, self.limits.max_bytes)
        except InputError as error:
            return InputError(_judged(error.reason, planned), error.detail)

    def _read_all(self, inputs: Sequence[PlannedInput]) -> Iterator[tuple[PlannedInput, RawInput | InputError]]:
        """Inputs in order; remote ones are read a few ahead, since their latency would starve the decoder."""
        if not any(self.readers[i].remote for i in {planned.reader for planned in inputs}):
            yield from ((planned, self.read(planned)) for planned in inputs)
            return
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            yield from ahead(lambda planned: pool.submit(self.read, planned), inputs, READ_AHEAD)


def write_index(
    dest: str, shard: str, rows: list[tuple[Any, ...]], record: CorpusShardRecord, rejects: list[Reject]
) -> None:
    """Store a shard's index, with its record and rejects in the metadata."""
    columns = [
        pa.array([row[i] for row in rows], INDEX_SCHEMA.field(i).type) for i in range(len(INDEX_SCHEMA))
    ]  # fmt: skip
    metadata = {SHARD_KEY: canonical_json(vars(record)), REJECTS_KEY: canonical_json(rejects)}
    table = pa.Table.from_arrays(columns, schema=INDEX_SCHEMA).replace_schema_metadata(metadata)
    with storage.atomic_write(index_url(dest, shard)) as file:
        pq.write_table(table, file, compression="zstd")


def read_record(dest: str, shard: str) -> tuple[CorpusShardRecord, list[Reject]] | None:
    """The record and rejects of a finished shard; None where there is none."""
    try:
        with storage.open_read(index_url(dest, shard)) as file:
            metadata = pq.read_schema(file).metadata or {}
        record = CorpusShardRecord(**json.loads(metadata[SHARD_KEY]))
        return record, [Reject(*row) for row in json.loads(metadata[REJECTS_KEY])]
    except (FileNotFoundError, KeyError, ValueError, TypeError, pa.ArrowInvalid):
        return None


def _judged(reason: str, planned: PlannedInput) -> str:
    """A plain file that is neither named like a picture nor is one was never meant as an input."""
    plain = planned.where is None
    if plain and reason in ("not_an_image", "empty_file", "too_many_bytes") and not is_image_name(planned.name):
        return "other_file"
    return reason
