"""Reading a sharded corpus: its manifest, its samples in a stream, and where each picture lies.

corpus = Corpus.open("workspace/corpora/scenes/train")
for shard in corpus.shards:
    for sample in iter_shard(corpus.url, shard):
        rgb = images.decode(sample.image).rgb
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.corpus.builder import INDEX_SCHEMA
from flextok.data.corpus.layout import MANIFEST, corpus_root, index_url, shard_url
from flextok.data.corpus.manifest import FORMAT, SHARDS_TABLE
from flextok.data.corpus.members import shard_members
from flextok.data.weights import PartWeights, part_type
from flextok.errors import IntegrityError, UsageError


@dataclass(frozen=True)
class Shard:
    """One tar of a corpus, as its manifest describes it."""

    name: str
    url: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Sample:
    """One sample of a shard; `meta` is its whole JSON member."""

    key: str
    ext: str
    image: bytes
    label: int | None
    text: str | None
    meta: dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """A finished corpus split."""

    url: str
    digest: str
    name: str
    split: str
    classes: list[str] | None
    num_samples: int
    shards: list[Shard]
    manifest: dict[str, Any]

    @classmethod
    def open(cls, url: str) -> "Corpus":
        """The corpus whose folder (or whose shards/ folder) is `url`; raises UsageError when there is none."""
        root = corpus_root(url)
        if not storage.exists(storage.join(root, MANIFEST)):
            raise UsageError(f"expected a corpus with {MANIFEST} in {root}, found none; make one with `flextok shard`")
        manifest = storage.read_json(storage.join(root, MANIFEST))
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else None
            raise UsageError(f"expected {FORMAT} in {root}/{MANIFEST}, found {found}; give a corpus folder")
        with storage.open_read(storage.join(root, SHARDS_TABLE)) as file:
            rows = pq.read_table(file).to_pylist()
        shards = [Shard(r["shard"], shard_url(root, r["shard"]), r["samples"], r["bytes"], r["sha256"]) for r in rows]
        num_samples = sum(shard.samples for shard in shards)
        if num_samples != manifest["counts"]["samples"]:
            raise IntegrityError(
                f"expected {manifest['counts']['samples']} samples in {root}, manifest.parquet has {num_samples}; run `flextok verify`"
            )
        return cls(
            root,
            manifest["digest"],
            manifest["name"],
            manifest["split"],
            manifest["classes"],
            num_samples,
            shards,
            manifest,
        )

    def index(self, *columns: str) -> pl.DataFrame:
        """One row a sample, in shard order: key, offset, size, ext, label, text, width, height, sha256, source, phash, shard.

        With `columns`, only these (and shard) are read.
        """
        return read_indexes(self.url, [shard.name for shard in self.shards], list(columns) or INDEX_SCHEMA.names)

    def index_sha256(self, shard: Shard) -> str | None:
        """What the manifest says of the hash of a shard's index; None where it says nothing."""
        return self.manifest["files"].get(f"index/{shard.name}.parquet")

    def sample_weights(self) -> PartWeights | None:
        """For each sample, in the order of `index`, the weight of its source (mean 1); None where all are alike."""
        weights = {source["name"]: float(source["weight"]) for source in self.manifest["sources"]}
        if len(set(weights.values())) == 1:
            return None
        numbers = {name: number for number, name in enumerate(weights)}
        parts = np.empty(self.num_samples, part_type(len(numbers)))
        start = 0
        for shard in self.shards:
            sources = read_indexes(self.url, [shard.name], ["source"])["source"]
            names = sources.str.split_exact("/", 1).struct.field("field_0")
            parts[start : start + shard.samples] = names.replace_strict(numbers, return_dtype=pl.UInt32).to_numpy()
            start += shard.samples
        return PartWeights(list(weights.values()), parts)


def read_indexes(dest: str, shards: list[str], columns: list[str]) -> pl.DataFrame:
    """Some columns of the indexes of all `shards`, in order, and the column `shard`."""
    frames = []
    for shard in shards:
        with storage.open_read(index_url(dest, shard)) as file:
            frame = pl.from_arrow(pq.read_table(file, columns=columns).replace_schema_metadata(None))
        assert isinstance(frame, pl.DataFrame)
        frames.append(frame.with_columns(shard=pl.lit(shard)))
    return pl.concat(frames)


def iter_shard(url: str, shard: str | Shard) -> Iterator[Sample]:
    """The samples of one shard of the corpus at `url`, read in a stream, one in memory at a time.

    Raises IntegrityError when the shard's bytes or number of samples are not those of the manifest; so a reader
    that keeps its output only at the end never keeps half a shard.
    """
    wanted = shard if isinstance(shard, Shard) else _find_shard(url, shard)
    samples = 0
    with storage.open_read(wanted.url) as file:
        stream = _Hashed(file)
        for members in _grouped(stream, wanted.url):
            samples += 1
            yield members
        stream.drain()
    if samples != wanted.samples or stream.sha.hexdigest() != wanted.sha256:
        raise IntegrityError(
            f"expected {wanted.samples} samples with sha256 {wanted.sha256[:12]} in {wanted.url}, found {samples} with "
            f"{stream.sha.hexdigest()[:12]}; run `flextok verify`, then shard again"
        )


def _find_shard(url: str, name: str) -> Shard:
    for shard in Corpus.open(url).shards:
        if shard.name == name:
            return shard
    raise UsageError(f"expected shard {name} in {url}, found none of that name")


class _Hashed:
    """A file read from start to end, hashed on the way."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.sha = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        content = self._file.read(size)
        self.sha.update(content)
        return content

    def drain(self) -> None:
        while self.read(storage.CHUNK_BYTES):
            pass


def _grouped(stream: _Hashed, url: str) -> Iterator[Sample]:
    """Samples of a shard of ours: a picture first, its .cls, .txt and .json behind it."""
    key, parts = "", dict[str, bytes]()
    for name, content in shard_members(stream, url):
        member_key, _, ext = name.partition(".")
        if member_key != key and parts:
            yield _sample(key, parts, url)
            parts = {}
        key = member_key
        parts[ext] = content
    if parts:
        yield _sample(key, parts, url)


def _sample(key: str, parts: dict[str, bytes], url: str) -> Sample:
    try:
        meta = json.load(io.BytesIO(parts.pop("json")))
        label = int(parts.pop("cls")) if "cls" in parts else None
        text = parts.pop("txt").decode() if "txt" in parts else None
        ((ext, image),) = parts.items()
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"sample {key} of {url} is not as written ({error!r}); run `flextok verify`") from None
    return Sample(key, ext, image, label, text, meta)
