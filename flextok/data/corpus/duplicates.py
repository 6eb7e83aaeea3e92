"""Equal and nearly equal pictures of a corpus, found from the shards' indexes after they are made.

Equal: the same bytes. Which of them stays does not depend on the number of workers: the first one in shard order,
so that a corpus which is added to never loses a sample to a newcomer.

Nearly equal: perceptual hashes (ImageHash's 64-bit pHash) at most NEAR_BITS bits apart. Hashes are cut into
NEAR_BITS + 1 bands; two that differ in NEAR_BITS bits agree in at least one band, so comparing within equal bands
finds every pair without comparing all with all. Pictures of one and the same hash are each paired with their first.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.corpus.builder import CorpusShardRecord, read_record, write_index
from flextok.data.corpus.layout import index_url, shard_url
from flextok.data.corpus.members import shard_members
from flextok.data.corpus.reader import read_indexes
from flextok.data.corpus.tar import TarWriter
from flextok.data.rejects import Reject

NEAR_BITS = 4
BANDS = NEAR_BITS + 1
PAIR_SCHEMA: Mapping[Any, Any] = {
    "key_a": pl.String, "key_b": pl.String, "source_a": pl.String, "source_b": pl.String, "distance": pl.Int32,
}  # fmt: skip


def count_duplicates(dest: str, shards: list[str]) -> int:
    """How many samples have the bytes of an earlier one; reads and keeps their hashes only."""
    hashes = read_indexes(dest, shards, ["sha256"])["sha256"]
    return len(hashes) - hashes.n_unique()


def find_duplicates(index: pl.DataFrame) -> pl.DataFrame:
    """Samples with the bytes of an earlier one: shard, key, source, and `first`, the earlier one's source."""
    first = pl.col("source").first().over("sha256").alias("first")
    return index.with_columns(first).filter(pl.col("sha256").is_first_distinct().not_())


def drop_duplicates(dest: str, duplicates: pl.DataFrame) -> dict[str, CorpusShardRecord]:
    """Write the shards anew that hold `duplicates`, without them; gives back their new records.

    A run that ends in between is no harm: what is dropped already is not found again, and nothing else changes.
    """
    records = {}
    for (shard,), rows in duplicates.group_by("shard", maintain_order=True):
        reasons = {
            row["key"]: Reject(row["source"], "duplicate", f"same bytes as {row['first']}") for row in rows.to_dicts()
        }
        records[str(shard)] = _without(dest, str(shard), reasons)
    return records


def _without(dest: str, shard: str, dropped: dict[str, Reject]) -> CorpusShardRecord:
    stored = read_record(dest, shard)
    assert stored is not None
    old, rejects = stored
    with storage.open_read(index_url(dest, shard)) as file:
        rows = [row for row in pq.read_table(file).to_pylist() if row["key"] not in dropped]
    offsets: dict[str, int] = {}
    with storage.open_read(shard_url(dest, shard)) as source, storage.atomic_write(shard_url(dest, shard)) as file:
        tar = TarWriter(file)
        for name, content in shard_members(source, shard):
            key = name.partition(".")[0]
            if key not in dropped:
                offset = tar.add(name, content)
                offsets.setdefault(key, offset)
        sha256 = tar.close()
    record = CorpusShardRecord(old.fingerprint, len(rows), tar.bytes, sha256)
    moved = [tuple({**row, "offset": offsets[row["key"]]}.values()) for row in rows]
    write_index(dest, shard, moved, record, rejects + list(dropped.values()))
    return record


def find_near_duplicates(index: pl.DataFrame) -> pl.DataFrame:
    """Pairs of samples that look alike but differ in their bytes, the nearest first (columns of PAIR_SCHEMA)."""
    index = index.unique("sha256", keep="first", maintain_order=True).filter(pl.col("phash").is_not_null())
    first = index.unique("phash", keep="first", maintain_order=True)
    same = index.join(first.select("phash", first="key"), on="phash").filter(pl.col("key") != pl.col("first"))
    hashes = first["phash"].to_numpy()
    pairs = _near_pairs(hashes)
    near = pl.DataFrame({"a": first["key"].gather(pairs[:, 0]), "b": first["key"].gather(pairs[:, 1]),
                         "distance": np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).astype(np.int32)})  # fmt: skip
    equal = same.select(a="first", b="key", distance=pl.lit(0, pl.Int32))
    sources = index.select("key", "source")
    joined = (
        pl.concat([equal, near])
        .join(sources.rename({"key": "a", "source": "source_a"}), on="a")
        .join(sources.rename({"key": "b", "source": "source_b"}), on="b")
        .select(key_a="a", key_b="b", source_a="source_a", source_b="source_b", distance="distance")
    )
    return joined.cast(dict(PAIR_SCHEMA)).sort("distance", "key_a", "key_b")


def _near_pairs(hashes: np.ndarray) -> np.ndarray:
    """Index pairs [P, 2], each once, of different hashes at most NEAR_BITS apart."""
    edges = np.linspace(0, 64, BANDS + 1).astype(int)
    found = [np.zeros((0, 2), np.int64)]
    for low, high in itertools.pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        sorted_band = band[order]
        # Each hash with its next, next but one ... within its group, until no group is that long.
        for step in range(1, len(order)):
            same = sorted_band[step:] == sorted_band[:-step]
            if not same.any():
                break
            a, b = order[:-step][same], order[step:][same]
            near = np.bitwise_count(hashes[a] ^ hashes[b]) <= NEAR_BITS
            found.append(np.sort(np.stack([a[near], b[near]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)
