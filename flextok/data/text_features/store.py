"""Reading text features: a folder of shards with a manifest, each caption by itself."""

import collections
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from flextok import storage
from flextok.data.corpus.crops import read_at
from flextok.data.text_features.shard import FORMAT, SUFFIX, StoredFeatures, TextMeta, read_feature_shard
from flextok.data.tokens.writer import MANIFEST, ShardRecord
from flextok.digests import digest_rows
from flextok.errors import FlextokError, IntegrityError, UsageError
from flextok.provenance import make_provenance

HEADER_THREADS = 16
KEPT_ENDS = 8 << 20
"""Numbers that say where captions lie, 8 bytes each, of the shards that were used last."""


class TextFeatureStore:
    """The features of all captions of a corpus by one encoder. Open it with `TextFeatureStore.open`."""

    def __init__(self, url: str, shards: Sequence[StoredFeatures], digest: str):
        self.url, self.digest, self.shards = url, digest, list(shards)
        self.meta = self.shards[0].meta
        for shard in self.shards:
            if shard.meta.identity() != self.meta.identity():
                raise IntegrityError(
                    f"expected features of one encoder in {url}, {self.encoder[:12]}, found "
                    f"{shard.meta.encoder[:12]} in {shard.name}; run `flextok encode-text` again"
                )
        self._by_name = {shard.name: number for number, shard in enumerate(self.shards)}
        self._ends: collections.OrderedDict[int, tuple[np.ndarray, np.ndarray]] = collections.OrderedDict()

    @classmethod
    def open(cls, url: str) -> "TextFeatureStore":
        """The store in the folder `url`; UsageError where there is none, IntegrityError where shards are missing."""
        url = storage.absolute(url)
        manifest = read_manifest(url)
        with ThreadPoolExecutor(HEADER_THREADS) as pool:
            shards = list(pool.map(lambda entry: _open_listed(url, entry), manifest["shards"]))
        if not shards:
            raise UsageError(f"expected at least one shard of text features at {url}, found none")
        return cls(url, shards, manifest["digest"])

    def __len__(self) -> int:
        """Images."""
        return sum(shard.images for shard in self.shards)

    @property
    def encoder(self) -> str:
        """Digest of the encoder."""
        return self.meta.encoder

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return self.meta.width

    def shard_number(self, name: str) -> int | None:
        """The number of the shard for the image shard of this name (without .tar); None where there is none."""
        return self._by_name.get(name)

    def captions(self, shard: int, image: int) -> int:
        """How many captions an image has, by its number in a shard: one at least."""
        first, stop = _range(self._ends_of(shard)[0], image)
        return stop - first

    def features(self, shard: int, image: int, caption: int) -> np.ndarray:
        """The features of one caption of an image, by their numbers: float16 [n, width], as they are stored."""
        caption_ends, token_ends = self._ends_of(shard)
        first, stop = _range(caption_ends, image)
        if not 0 <= caption < stop - first:
            raise IndexError(f"caption {caption} of an image with {stop - first}")
        return self._tokens(shard, *_range(token_ends, first + caption))

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read: copies go to other processes."""
        return {**self.__dict__, "_ends": collections.OrderedDict()}

    def _ends_of(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Where captions of images and tokens of captions end, in one shard; kept for those that were used last."""
        if shard not in self._ends:
            stored = self.shards[shard]
            self._ends[shard] = stored.read("caption_ends"), stored.read("token_ends")
            while len(self._ends) > 1 and sum(len(end) for pair in self._ends.values() for end in pair) > KEPT_ENDS:
                self._ends.popitem(last=False)
        self._ends.move_to_end(shard)
        return self._ends[shard]

    def _tokens(self, shard: int, first: int, stop: int) -> np.ndarray:
        """Read, not mapped: what was read of mapped files would count as this process's memory."""
        kind, (_, width), start = self.shards[shard].tensors["features"]
        size = width * kind.itemsize
        # Captions without any word, by the encoder of words, have nothing to be read.
        content = read_at(self.shards[shard].url, start + first * size, (stop - first) * size) if stop > first else b""
        return np.frombuffer(content, kind).reshape(-1, width)


def _range(ends: np.ndarray, number: int) -> tuple[int, int]:
    return int(ends[number - 1]) if number else 0, int(ends[number])


def read_manifest(url: str) -> dict[str, Any]:
    """The manifest of the store at `url`; raises UsageError where there is none."""
    manifest_url = storage.join(url, MANIFEST)
    manifest = storage.read_json(manifest_url) if storage.exists(manifest_url) else None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UsageError(
            f"expected text features ({FORMAT}) with a {MANIFEST} at {url}, found none; "
            "give the folder of a finished `flextok encode-text`, or run it again to finish it"
        )
    return manifest


def write_feature_manifest(
    url: str, records: Sequence[ShardRecord], meta: TextMeta, inputs: list[dict[str, str]], recipe: Any
) -> str:
    """Write the manifest which makes the shards `records` in the folder `url` a store; gives its digest."""
    records = sorted(records, key=lambda record: record.shard)
    digest = digest_rows((record.shard, record.rows, record.content_sha256) for record in records)
    manifest = {
        "format": FORMAT,
        "digest": digest,
        "counts": {
            "rows": sum(record.rows for record in records),
            "shards": len(records),
            "bytes": sum(record.bytes for record in records),
        },
        "text_features": {**meta.identity(), "encoder_name": meta.encoder_name},
        "shards": [dataclasses.asdict(record) for record in records],
        "provenance": make_provenance("text_features", digest, inputs, recipe, url),
    }
    storage.write_json(storage.join(url, MANIFEST), manifest)
    return digest


def _open_listed(url: str, entry: dict[str, Any]) -> StoredFeatures:
    shard_url = storage.join(url, f"{entry['shard']}{SUFFIX}")
    try:
        shard = read_feature_shard(shard_url)
    except FileNotFoundError:
        raise IntegrityError(f"expected {shard_url}, found nothing; run `flextok encode-text` again") from None
    if shard.images != entry["rows"]:
        raise IntegrityError(
            f"expected {entry['rows']} images in {shard_url}, found {shard.images}; run `flextok encode-text` again"
        )
    return shard


def verify_text_features(url: str) -> list[str]:
    """What is wrong with the store at `url`, a line each: shards that are missing or hold other bytes than were written."""
    url = storage.absolute(url)
    manifest = read_manifest(url)
    problems, rows = [], []
    for entry in manifest["shards"]:
        try:
            shard = _open_listed(url, entry)
        except FlextokError as error:
            problems.append(f"shard {entry['shard']}: {error}")
            continue
        found = shard.content()
        rows.append((entry["shard"], shard.images, found))
        if storage.sha256_file(shard.url) != entry["sha256"] or found != entry["content_sha256"]:
            problems.append(f"shard {entry['shard']}: its bytes are not those that were written")
    listed = {f"{entry['shard']}{SUFFIX}" for entry in manifest["shards"]}
    strangers = [name for name in storage.list_names(url) if name.endswith(SUFFIX) and name not in listed]
    problems += [f"{name}: not in the manifest" for name in strangers]
    if not problems and digest_rows(rows) != manifest["digest"]:
        problems.append(f"digest of the rows is {digest_rows(rows)[:12]}, the manifest says {manifest['digest'][:12]}")
    return problems
