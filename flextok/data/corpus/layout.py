"""Where the files of a shard lie in a corpus."""

from flextok import storage


def shard_url(dest: str, shard: str) -> str:
    """The tar of a shard."""
    return storage.join(dest, "shards", f"{shard}.tar")


def index_url(dest: str, shard: str) -> str:
    """The index beside a shard."""
    return storage.join(dest, "index", f"{shard}.parquet")
