"""Writing token shards: streamed row group by row group, visible whole or not at all; and the store's manifest."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.rejects import Reject
from flextok.data.tokens.schema import FORMAT, ContentHash, TokenMeta
from flextok.digests import digest_rows
from flextok.provenance import make_provenance

ROW_GROUP_ROWS = 8192
MANIFEST = "manifest.json"
CONTENT_KEY = "flextok.content_sha256"
REJECTS_KEY = "flextok.rejects"


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """A finished token shard as the manifest lists it; `sha256` is of the file, `content_sha256` of its rows."""

    shard: str
    rows: int
    sha256: str
    source_sha256: str
    content_sha256: str
    bytes: int
    rejects: int


class _HashingFile:
    """A file for pyarrow which hashes what passes, so that the finished shard need not be read again."""

    def __init__(self, file: IO[bytes]):
        self._file, self._sha, self._position = file, hashlib.sha256(), 0
        self.closed = False

    def write(self, content: Any) -> int:
        """Append `content`."""
        self._sha.update(content)
        self._file.write(content)
        self._position += len(content)
        return len(content)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._position

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """The owner of the file closes it."""
        self.closed = True

    def hexdigest(self) -> str:
        """Hash of the bytes so far."""
        return self._sha.hexdigest()


def write_token_shard(
    url: str, schema: pa.Schema, tables: Iterable[pa.Table], rejects: Sequence[Reject] = ()
) -> ShardRecord:
    """Write the rows of `tables`, in their order, as the token shard `url`; memory holds one row group at a time.

    `rejects` is read when `tables` is at its end, so that their generator may fill it. When the generator raises,
    nothing appears at `url`.
    """
    meta = TokenMeta.from_metadata(schema.metadata, url)
    content = ContentHash(meta)
    with storage.atomic_write(url) as file:
        sink = _HashingFile(file)
        options = {"compression": "zstd", "write_page_index": True, "use_dictionary": ["label", "text"]}
        # Ids are near to uniform: split into bytes they pack to log2(vocabulary) and read fastest of all encodings. Of
        # floats it sets apart the exponents, which are alike; of halves DuckDB does not read it.
        encoding = {f"{meta.column}.list.element": "PLAIN" if meta.values == "float16" else "BYTE_STREAM_SPLIT"}
        with pq.ParquetWriter(sink, schema, column_encoding=encoding, **options) as writer:
            for group in _row_groups(schema, tables):
                content.update(group)
                writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            listed = json.dumps([reject._asdict() for reject in rejects], sort_keys=True)
            writer.add_key_value_metadata({CONTENT_KEY: content.hexdigest(), REJECTS_KEY: listed})
    return ShardRecord(
        shard=url.rpartition("/")[2].removesuffix(".parquet"),
        rows=content.rows,
        sha256=sink.hexdigest(),
        source_sha256=meta.source_sha256,
        content_sha256=content.hexdigest(),
        bytes=sink.tell(),
        rejects=len(rejects),
    )


def _row_groups(schema: pa.Schema, tables: Iterable[pa.Table]) -> Iterable[pa.Table]:
    """The same rows in tables of ROW_GROUP_ROWS, the last one shorter."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= ROW_GROUP_ROWS:
            joined = pa.concat_tables(held)
            while joined.num_rows >= ROW_GROUP_ROWS:
                yield joined.slice(0, ROW_GROUP_ROWS).combine_chunks()
                joined = joined.slice(ROW_GROUP_ROWS)
            held, rows = [joined], joined.num_rows
    rest = pa.concat_tables(held) if held else schema.empty_table()
    if rest.num_rows:
        yield rest.combine_chunks()


def write_token_manifest(
    url: str,
    kind: str,
    records: Sequence[ShardRecord],
    meta: TokenMeta,
    inputs: list[dict[str, str]],
    recipe: Any,
    rejects: Sequence[Reject] = (),
) -> str:
    """Write the manifest which makes the shards `records` in the folder `url` a token store; gives its digest.

    `kind` is the artifact's kind in lineage: "tokens", or "samples" for tokens drawn from a prior.
    """
    records = sorted(records, key=lambda record: record.shard)
    digest = digest_rows((record.shard, record.rows, record.content_sha256) for record in records)
    manifest = {
        "format": FORMAT,
        "digest": digest,
        "counts": {
            "rows": sum(record.rows for record in records),
            "shards": len(records),
            "rejects": sum(record.rejects for record in records),
            "bytes": sum(record.bytes for record in records),
        },
        "tokens": {**meta.identity(), "dtype": meta.dtype, "corpus": meta.corpus},
        "shards": [dataclasses.asdict(record) for record in records],
        "rejects": [reject._asdict() for reject in rejects],
        "provenance": make_provenance(kind, digest, inputs, recipe, url),
    }
    storage.write_json(storage.join(url, MANIFEST), manifest)
    return digest
