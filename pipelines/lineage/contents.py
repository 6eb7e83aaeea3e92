"""What an artifact holds, as its manifest and one footer say it: rows, bytes, files and columns."""

from dataclasses import dataclass
from typing import Any

from flextok import storage

SCHEMA_SHARDS = 8
"""Shards of a corpus that are looked at for its members: those of one corpus are alike."""


@dataclass(frozen=True)
class Column:
    """A column of a table, or a member of the samples of a corpus."""

    name: str
    type: str
    description: str | None = None


@dataclass(frozen=True)
class Contents:
    """Counts of an artifact with rows."""

    url: str
    manifest: dict[str, Any]
    rows: int
    bytes: int
    files: int

    @property
    def columns(self) -> list[Column]:
        """Names and types."""
        if "text_features" in self.manifest:
            width = self.manifest["text_features"]["width"]
            return [Column("key", "string"), Column("features", f"float16[{width}]", "a row a token of each caption")]
        return _token_columns(self) if "tokens" in self.manifest else _corpus_columns(self)


def contents_of(url: str) -> Contents | None:
    """The contents of a corpus, a token store, text features or samples; None for another artifact."""
    manifest_url = storage.join(url, "manifest.json")
    if not storage.exists(manifest_url):
        return None
    manifest = storage.read_json(manifest_url)
    if "counts" not in manifest:
        return None
    counts = manifest["counts"]
    if "tokens" in manifest or "text_features" in manifest:
        return Contents(url, manifest, counts["rows"], counts["bytes"], counts["shards"])
    from flextok.data.corpus.reader import Corpus

    sizes = [shard.bytes for shard in Corpus.open(url).shards]
    return Contents(url, manifest, counts["samples"], sum(sizes), len(sizes))


def _token_columns(contents: Contents) -> list[Column]:
    import pyarrow.parquet as pq

    first = contents.manifest["shards"][0]["shard"]
    with storage.open_read(storage.join(contents.url, f"{first}.parquet")) as file:
        return [Column(field.name, str(field.type)) for field in pq.read_schema(file)]


def _corpus_columns(contents: Contents) -> list[Column]:
    """The members of a sample; those that no sample of the first shards has are left out."""
    from flextok.data.corpus.reader import Corpus, read_indexes

    shards = [shard.name for shard in Corpus.open(contents.url).shards[:SCHEMA_SHARDS]]
    index = read_indexes(contents.url, shards, ["ext", "label", "text"])
    pictures = [Column(ext, "binary", "the picture") for ext in index["ext"].unique().sort()]
    class_number = [Column("cls", "int32", "the number of its class")] if index["label"].count() else []
    text = [Column("txt", "string", "its caption")] if index["text"].count() else []
    return [
        Column("key", "string", "the name of the sample"),
        *pictures,
        *class_number,
        *text,
        Column("json", "json", "what else is known of it"),
    ]
