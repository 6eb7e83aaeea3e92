"""The files of a token store: what the footer of a shard says, its rows, and the manifest."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.tokens.schema import FORMAT, TokenMeta
from flextok.data.tokens.writer import CONTENT_KEY, MANIFEST
from flextok.errors import IntegrityError, UsageError


class DamagedFile(IntegrityError):
    """A file that is no readable Parquet: cut short, or its bytes are not those that were written."""


@dataclasses.dataclass(frozen=True)
class StoredShard:
    """A token shard as its footer describes it."""

    url: str
    name: str
    rows: int
    bytes: int
    ids_bytes: int
    """Of these, what the compressed column `tokens` (or `values`) takes."""
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    meta: TokenMeta
    content_sha256: str
    """Hash of the rows as the writer saw them."""
    has_views: bool


@contextlib.contextmanager
def parquet_errors(url: str) -> Iterator[None]:
    """Turns what Arrow raises for damaged bytes into DamagedFile; failures to read at all pass."""
    try:
        yield
    except pa.ArrowException as error:
        found = error
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:
            raise
        found = error
    else:
        return
    raise DamagedFile(f"expected a Parquet file at {url}, found damage ({found}); tokenize it again")


def read_shard_table(url: str) -> pa.Table:
    """All rows of the token shard `url`; raises DamagedFile when they cannot be read."""
    with parquet_errors(url), storage.open_read(url) as file:
        return pq.ParquetFile(file).read()


def read_row_group(url: str, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group of the token shard `url`; raises DamagedFile when it cannot be read."""
    with parquet_errors(url), storage.open_read(url) as file:
        return pq.ParquetFile(file).read_row_group(group, columns=list(columns) if columns else None)


def flat_rows(column: pa.Array | pa.ChunkedArray, per_row: int) -> np.ndarray:
    """A column of fixed size lists as an array [N, per_row], without a copy where it is one chunk."""
    chunks = column.chunks or [column.combine_chunks()] if isinstance(column, pa.ChunkedArray) else [column]
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, per_row) for chunk in chunks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def read_shard_footer(url: str) -> StoredShard:
    """What the footer of the token shard `url` says; raises DamagedFile when it cannot be read as
    Parquet, IntegrityError when it is no token shard."""
    with parquet_errors(url), storage.open_read(url) as file:
        parquet = pq.ParquetFile(file)
        footer, schema = parquet.metadata, parquet.schema_arrow
        size = file.seek(0, io.SEEK_END)
    meta = TokenMeta.from_metadata(schema.metadata, url)
    groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
    return StoredShard(
        url=url,
        name=url.rpartition("/")[2].removesuffix(".parquet"),
        rows=footer.num_rows,
        bytes=size,
        ids_bytes=sum(_column_bytes(group, meta.column) for group in groups),
        row_groups=tuple(group.num_rows for group in groups),
        meta=meta,
        content_sha256=(footer.metadata or {}).get(CONTENT_KEY.encode(), b"").decode(),
        has_views="view" in schema.names,
    )


def read_manifest(url: str) -> dict[str, Any]:
    """The manifest of the token store `url`; raises UsageError when there is none."""
    manifest_url = storage.join(url, MANIFEST)
    if not storage.exists(manifest_url):
        raise UsageError(
            f"expected a token store with a {MANIFEST} at {url}, found none; "
            "give the folder of a finished `flextok tokenize`, or run it again to finish it"
        )
    manifest = storage.read_json(manifest_url)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise UsageError(f"expected a token store ({FORMAT}) at {url}, found {found!r}; give a folder of token shards")
    return manifest


def _column_bytes(group: Any, name: str) -> int:
    columns = [group.column(place) for place in range(group.num_columns)]
    return sum(column.total_compressed_size for column in columns if column.path_in_schema.startswith(f"{name}."))
