"""The plan of a corpus: which input becomes which sample of which shard, decided before anything is read.

The plan depends on the listing and the seed alone, never on the number of workers. It is stored as `plan.parquet`,
so that an interrupted run goes on with it, and inputs that are added later get new shards behind the old ones.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.config import CorpusConfig
from flextok.digests import digest_of

PLAN_FILE = "plan.parquet"
SETTINGS_KEY = b"flextok.settings"
PLAN_SCHEMA: Mapping[Any, Any] = {
    "shard": pl.Int32,
    "key": pl.String,
    "name": pl.String,
    "size": pl.Int64,
    "stamp": pl.String,
}
LONGEST_SLUG = 72
HASH_CHARACTERS = 10
UNSAFE = r"[^A-Za-z0-9_-]+"


@dataclass
class Plan:
    """Every input's place. `frame` has the columns of PLAN_SCHEMA, in shard order."""

    frame: pl.DataFrame
    settings: str
    """Digest of all settings that decide the shards' content."""
    added: int = 0
    """Inputs that an earlier plan in the same place did not have."""
    removed: int = 0
    """Inputs of the earlier plan that are gone from the source; their samples stay."""

    @property
    def num_shards(self) -> int:
        return 0 if self.frame.is_empty() else int(self.frame["shard"].max()) + 1  # pyright: ignore[reportArgumentType]


def make_plan(listing: pl.DataFrame, config: CorpusConfig, settings: str, earlier: pl.DataFrame | None = None) -> Plan:
    """Puts the inputs of `listing` (name, base, size, stamp) into shards, behind those of an `earlier` plan."""
    listing = listing.sort("name")
    if earlier is None:
        return Plan(_new_shards(listing, config, 0, taken=None), settings)
    known = listing.join(earlier.select("name"), on="name", how="semi")
    fresh = listing.join(earlier.select("name"), on="name", how="anti").sort("name")
    kept = earlier.join(
        known.select("name", new_size="size", new_stamp="stamp"), on="name", how="left", maintain_order="left"
    )
    # A changed size or stamp changes its shard's fingerprint, so that the shard is made again.
    kept = kept.with_columns(
        size=pl.coalesce("new_size", "size"), stamp=pl.coalesce("new_stamp", "stamp")
    ).select(list(PLAN_SCHEMA))  # fmt: skip
    first = Plan(earlier, settings).num_shards
    added = _new_shards(fresh, config, first, taken=earlier["key"])
    return Plan(pl.concat([kept, added]), settings, added=fresh.height, removed=earlier.height - known.height)


def shard_fingerprint(settings: str, rows: pl.DataFrame) -> str:
    """What decides a shard's content: the settings, and name, key, size and stamp of its inputs in order."""
    return digest_of([settings, rows.select("key", "name", "size", "stamp").rows()])


def in_split(names: pl.Series, split: str, val_fraction: float) -> pl.Series:
    """Which names belong to `split` when a hash of the name decides."""
    if split == "all":
        return pl.Series([True], dtype=pl.Boolean).new_from_index(0, len(names))
    in_val = name_hashes(names)[:, 0] < np.uint64(min(val_fraction * 2.0**64, 2.0**64 - 1))
    return pl.Series(in_val if split == "val" else ~in_val)


def name_hashes(names: pl.Series) -> np.ndarray:
    """Two independent uint64 for each name, [N, 2]: the first chooses the split, the second the place in the shuffle."""
    joined = b"".join(hashlib.blake2b(name.encode(), digest_size=16).digest() for name in names)
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2)


def write_plan(dest: str, plan: Plan) -> None:
    """Store the plan under `dest`."""
    table = plan.frame.to_arrow().replace_schema_metadata({SETTINGS_KEY: plan.settings.encode()})
    with storage.atomic_write(storage.join(dest, PLAN_FILE)) as file:
        pq.write_table(table, file, compression="zstd")


def read_plan(dest: str) -> Plan | None:
    """The plan stored under `dest`, None when there is none."""
    url = storage.join(dest, PLAN_FILE)
    if not storage.exists(url):
        return None
    with storage.open_read(url) as file:
        table = pq.read_table(file)
    settings = (table.schema.metadata or {}).get(SETTINGS_KEY, b"").decode()
    frame = pl.from_arrow(table.replace_schema_metadata(None))
    assert isinstance(frame, pl.DataFrame)
    return Plan(frame.select(list(PLAN_SCHEMA)).cast(PLAN_SCHEMA), settings)  # pyright: ignore[reportArgumentType]


def _new_shards(listing: pl.DataFrame, config: CorpusConfig, first_shard: int, taken: pl.Series | None) -> pl.DataFrame:
    """Keys, shuffled order and shards of inputs that no plan has yet."""
    keys = make_keys(listing["name"], listing["base"], taken)
    order = np.argsort(_mixed(name_hashes(listing["name"])[:, 1], config.seed), kind="stable")
    shuffled = listing.with_columns(key=keys)[order]
    shards = first_shard + _cut(shuffled["size"].to_numpy(), config.shard_samples, config.shard_bytes)
    frame = shuffled.with_columns(shard=pl.Series(shards, dtype=pl.Int32))
    return frame.select(list(PLAN_SCHEMA)).cast(dict(PLAN_SCHEMA))


def _cut(sizes: np.ndarray, shard_samples: int, shard_bytes: int) -> np.ndarray:
    """Shard of each input in order: as few shards of equal counts as allowed, cut earlier where bytes demand it."""
    total = len(sizes)
    if total == 0:
        return np.zeros(0, np.int32)
    count = -(-total // shard_samples)
    if int(sizes.sum()) <= shard_bytes * count and int(sizes.max(initial=0)) * shard_samples <= shard_bytes:
        return np.arange(total) * count // total
    limit = -(-total // count)
    shards = np.empty(total, np.int32)
    shard, samples, filled = 0, 0, 0
    for i, size in enumerate(sizes.tolist()):
        if samples and (samples == limit or filled + size > shard_bytes):
            shard, samples, filled = shard + 1, 0, 0
        shards[i] = shard
        samples, filled = samples + 1, filled + size
    return shards


def make_keys(names: pl.Series, bases: pl.Series, taken: pl.Series | None = None) -> pl.Series:
    """Unique safe keys ([A-Za-z0-9_-], at most 100 characters) made of `bases`.

    Where making it safe loses something, or two bases give the same key (also when only upper and lower case
    differ), a short hash of the name is added to each of them; so keys do not depend on any order.
    """
    frame = pl.DataFrame({"name": names, "base": bases})
    slug = pl.col("base").str.replace_all(UNSAFE, "_").str.strip_chars_start("-").str.slice(0, LONGEST_SLUG)
    lossy = pl.col("base").str.contains(r"[^A-Za-z0-9_/-]") | (pl.col("base").str.len_bytes() > LONGEST_SLUG)
    frame = frame.with_columns(slug=slug, lossy=lossy | (slug.str.len_bytes() == 0))
    folded = frame["slug"].str.to_lowercase()
    clash = folded.is_duplicated()
    if taken is not None:
        clash = clash | folded.is_in(taken.str.to_lowercase().implode())
    hashed = (frame["lossy"] | clash).to_numpy()
    return pl.Series(
        [
            f"{slug}-{_name_hash(name)}".lstrip("-") if add else slug
            for slug, name, add in zip(frame["slug"], names, hashed.tolist(), strict=True)
        ],
        dtype=pl.String,
    )


def _name_hash(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=16, person=b"key").hexdigest()[:HASH_CHARACTERS]


def _mixed(hashes: np.ndarray, seed: int) -> np.ndarray:
    """`hashes` permuted by `seed` (splitmix64's finaliser, Steele et al. 2014)."""
    z = hashes + np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
