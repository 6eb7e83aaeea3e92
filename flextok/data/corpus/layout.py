"""Where the files of a shard lie in a corpus."""

from flextok import storage

MANIFEST = "manifest.json"
SHARDS = "shards"


def corpus_root(url: str) -> str:
    """The folder of the corpus at `url`, which may be that of its tars: a corpus' own folder may have their name too."""
    root = storage.absolute(url)
    if storage.exists(storage.join(root, MANIFEST)):
        return root
    return root.removesuffix(f"/{SHARDS}")


def shard_url(dest: str, shard: str) -> str:
    """The tar of a shard."""
    return storage.join(dest, SHARDS, f"{shard}.tar")


def index_url(dest: str, shard: str) -> str:
    """The index beside a shard."""
    return storage.join(dest, "index", f"{shard}.parquet")
