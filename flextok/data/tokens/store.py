"""Reading token stores: a folder of token shards with a manifest, or one Parquet file of `flextok encode`.

No code of ours is needed to read the files:

    polars.read_parquet("tokens/*.parquet", columns=["key", "tokens"])
    duckdb.sql("select label, count(*) from 'tokens/*.parquet' group by label")
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

from flextok import storage
from flextok.data.tokens.schema import FORMAT, WHOLE_VIEW, TokenMeta, token_dtype, token_schema
from flextok.data.tokens.writer import CONTENT_KEY, MANIFEST
from flextok.digests import digest_of, digest_rows
from flextok.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from flextok.data.tokens.stream import TokenStream

FOOTER_THREADS = 16
CACHED_ROW_GROUPS = 8


@dataclasses.dataclass(frozen=True)
class StoredShard:
    """A token shard as its footer describes it."""

    url: str
    name: str
    rows: int
    bytes: int
    ids_bytes: int
    """Of these, what the compressed column `tokens` takes."""
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    meta: TokenMeta
    content_sha256: str
    """Hash of the rows as the writer saw them."""
    has_views: bool


@dataclasses.dataclass(frozen=True)
class TokenRow:
    """One row: `ids` [L] or, with several codebooks, [L, C]; the prefix `ids[:length]` is what its policy keeps."""

    key: str
    view: str
    ids: np.ndarray
    length: int
    label: int | None
    text: str | None
    width: int | None
    height: int | None
    sha256: bytes | None


@contextlib.contextmanager
def parquet_errors(url: str) -> Iterator[None]:
    """Turns what Arrow raises for damaged bytes into IntegrityError; failures to read at all pass."""
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
    raise IntegrityError(f"expected a Parquet file at {url}, found damage ({found}); tokenize it again")


def read_shard_table(url: str) -> pa.Table:
    """All rows of the token shard `url`; raises IntegrityError when they cannot be read."""
    with parquet_errors(url), storage.open_read(url) as file:
        return pq.ParquetFile(file).read()


def read_shard_footer(url: str) -> StoredShard:
    """What the footer of the token shard `url` says; raises IntegrityError when it is no readable token shard."""
    with parquet_errors(url), storage.open_read(url) as file:
        parquet = pq.ParquetFile(file)
        footer, schema = parquet.metadata, parquet.schema_arrow
        size = file.seek(0, io.SEEK_END)
    groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
    return StoredShard(
        url=url,
        name=url.rpartition("/")[2].removesuffix(".parquet"),
        rows=footer.num_rows,
        bytes=size,
        ids_bytes=sum(_ids_bytes(group) for group in groups),
        row_groups=tuple(group.num_rows for group in groups),
        meta=TokenMeta.from_metadata(schema.metadata, url),
        content_sha256=(footer.metadata or {}).get(CONTENT_KEY.encode(), b"").decode(),
        has_views="view" in schema.names,
    )


class TokenStore:
    """Rows of token shards made by one tokenizer, in shard order. Open it with `TokenStore.open`."""

    def __init__(self, shards: Sequence[StoredShard], digest: str, provenance: list[dict[str, Any]]):
        if not shards:
            raise UsageError("expected at least one token shard, found none; tokenize a corpus first")
        self.shards = list(shards)
        self.digest = digest
        self.provenance = provenance
        """The provenance block of each folder that was opened; empty for a single file."""
        self.meta = self.shards[0].meta
        for shard in self.shards:
            _refuse_other_identity(self.meta, shard)
        self._starts = np.cumsum([0, *(shard.rows for shard in self.shards)])
        self._row_groups: collections.OrderedDict[tuple[int, int], pa.Table] = collections.OrderedDict()
        self._rows_by_key: dict[tuple[str, str], int] | None = None

    @classmethod
    def open(cls, url: str | Sequence[str]) -> "TokenStore":
        """The store at `url`: a token folder, a token Parquet file, or several of them joined.

        Raises UsageError when there is none, and IntegrityError when shards come from different tokenizers, a shard
        is missing, or its row count is not the manifest's.
        """
        urls = [url] if isinstance(url, str) else list(url)
        opened = [_open_one(storage.absolute(item)) for item in urls]
        shards = [shard for shards, _, _ in opened for shard in shards]
        digests = [digest for _, digest, _ in opened]
        provenance = [block for _, _, block in opened if block is not None]
        return cls(shards, digests[0] if len(digests) == 1 else digest_of(digests), provenance)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_tokens(self) -> int:
        """Positions stored for each row, L."""
        return self.meta.num_tokens

    @property
    def vocab_size(self) -> int:
        """Ids lie in 0..vocab_size-1."""
        return self.meta.vocab_size

    @property
    def codebooks(self) -> int:
        """Ids at each position, C."""
        return self.meta.codebooks

    @property
    def tokenizer(self) -> str:
        """Digest of the tokenizer that made the rows."""
        return self.meta.tokenizer

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the first shard, with its metadata."""
        return token_schema(self.meta, views=self.has_views)

    @property
    def has_views(self) -> bool:
        """Whether several crops or flips of an image are rows of their own, told apart by the column `view`."""
        return self.shards[0].has_views

    @property
    def stored_bytes_per_token(self) -> float:
        """Bytes of the whole files for each stored id: keys, hashes and labels count too."""
        return self._for_each_id(shard.bytes for shard in self.shards)

    @property
    def column_bytes_per_token(self) -> float:
        """Bytes of the compressed column of ids for each stored id."""
        return self._for_each_id(shard.ids_bytes for shard in self.shards)

    def to_arrow(self, keep: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows as one Arrow table; with `keep`, `tokens` holds the first `keep` positions only."""
        table = self._dataset().to_table(columns=list(columns) if columns is not None else None)
        if keep is None or "tokens" not in table.schema.names:
            return table
        keep = self._checked_keep(keep)
        ids = np.concatenate([_row_values(chunk, self.meta.ids_per_row) for chunk in table["tokens"].chunks])
        kept = np.ascontiguousarray(ids[:, : keep * self.codebooks])
        column = pa.FixedSizeListArray.from_arrays(pa.array(kept.reshape(-1)), keep * self.codebooks)
        place = table.schema.get_field_index("tokens")
        table = table.set_column(place, pa.field("tokens", column.type, nullable=False), column)
        return table.replace_schema_metadata(dataclasses.replace(self.meta, num_tokens=keep).to_metadata())

    def ids(self, keep: int | None = None) -> np.ndarray:
        """Ids of all rows, [N, K] or [N, K, C], in the stored dtype (uint16 or uint32)."""
        keep = self._checked_keep(keep)
        out = np.empty((len(self), keep * self.codebooks), token_dtype(self.vocab_size))
        start = 0
        for batch in self._dataset().to_batches(columns=["tokens"]):
            values = _row_values(batch.column(0), self.meta.ids_per_row)
            out[start : start + len(values)] = values[:, : keep * self.codebooks]
            start += len(values)
        return out if self.codebooks == 1 else out.reshape(len(self), keep, self.codebooks)

    def labels(self) -> np.ndarray:
        """Labels of all rows, int64 [N]; -1 where there is none."""
        return self._column("label").fill_null(-1).to_numpy().astype(np.int64)

    def lengths(self) -> np.ndarray:
        """Tokens kept by the length policy, int64 [N]."""
        return self._column("length").to_numpy().astype(np.int64)

    def keys(self) -> list[str]:
        """Keys of all rows."""
        return self._column("key").to_pylist()

    def texts(self) -> list[str | None]:
        """Captions of all rows."""
        return self._column("text").to_pylist()

    def find(self, key: str, view: str = WHOLE_VIEW) -> int:
        """The row number of `key` (the first call reads all keys); raises KeyError."""
        if self._rows_by_key is None:
            views = self._column("view").to_pylist() if self.has_views else [WHOLE_VIEW] * len(self)
            self._rows_by_key = {pair: row for row, pair in enumerate(zip(self.keys(), views, strict=True))}
        return self._rows_by_key[key, view]

    def __getitem__(self, row: int) -> TokenRow:
        """The row numbered `row` (negative ones count from the end); reads one row group."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a store of {len(self)} rows")
        row %= len(self)
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        group, within = 0, row - int(self._starts[shard])
        while within >= self.shards[shard].row_groups[group]:
            within -= self.shards[shard].row_groups[group]
            group += 1
        values = self._cached_row_group(shard, group).slice(within, 1).to_pylist()[0]
        ids = np.array(values.pop("tokens"), token_dtype(self.vocab_size))
        ids = ids if self.codebooks == 1 else ids.reshape(-1, self.codebooks)
        return TokenRow(ids=ids, view=values.pop("view", WHOLE_VIEW), **values)

    def to_torch(
        self,
        batch_size: int,
        keep: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> "TokenStream":
        """Batches for training, the same number for every rank; see TokenStream."""
        from flextok.data.tokens.stream import TokenStream

        return TokenStream(self, batch_size, self._checked_keep(keep), shuffle, seed, rank, world_size)

    def read_row_group(self, shard: int, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group of one shard, by their numbers."""
        url = self.shards[shard].url
        with parquet_errors(url), storage.open_read(url) as file:
            return pq.ParquetFile(file).read_row_group(group, columns=list(columns) if columns else None)

    def __getstate__(self) -> dict[str, Any]:
        """Without caches: copies go to the processes of a DataLoader."""
        return {**self.__dict__, "_row_groups": collections.OrderedDict(), "_rows_by_key": None}

    def _cached_row_group(self, shard: int, group: int) -> pa.Table:
        place = (shard, group)
        if place not in self._row_groups:
            self._row_groups[place] = self.read_row_group(shard, group)
            if len(self._row_groups) > CACHED_ROW_GROUPS:
                self._row_groups.popitem(last=False)
        self._row_groups.move_to_end(place)
        return self._row_groups[place]

    def _for_each_id(self, sizes: Iterable[int]) -> float:
        return sum(sizes) / max(len(self) * self.meta.ids_per_row, 1)

    def _column(self, name: str) -> pa.ChunkedArray:
        return self._dataset().to_table(columns=[name])[name]

    def _dataset(self) -> Any:
        fs, _ = storage.filesystem(self.shards[0].url)
        paths = [storage.filesystem(shard.url)[1] for shard in self.shards]
        local = storage.is_local(self.shards[0].url)
        arrow_fs = LocalFileSystem() if local else PyFileSystem(FSSpecHandler(fs))
        return pyarrow.dataset.dataset(paths, schema=self.schema, filesystem=arrow_fs, format="parquet")

    def _checked_keep(self, keep: int | None) -> int:
        if keep is None:
            return self.num_tokens
        if not 1 <= keep <= self.num_tokens:
            raise ValueError(f"keep must be in 1..{self.num_tokens}, got {keep}")
        return keep


def _ids_bytes(group: Any) -> int:
    columns = [group.column(place) for place in range(group.num_columns)]
    return sum(column.total_compressed_size for column in columns if column.path_in_schema.startswith("tokens."))


def _row_values(column: pa.Array, ids_per_row: int) -> np.ndarray:
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, ids_per_row)


def _open_one(url: str) -> tuple[list[StoredShard], str, dict[str, Any] | None]:
    """Shards, digest and provenance of one folder or file."""
    if url.endswith(".parquet"):
        if not storage.exists(url):
            raise UsageError(f"expected a token file at {url}, found nothing; check the path")
        shard = read_shard_footer(url)
        return [shard], digest_rows([(shard.name, shard.rows, shard.content_sha256)]), None
    manifest = read_manifest(url)
    listed = manifest["shards"]
    with concurrent.futures.ThreadPoolExecutor(FOOTER_THREADS) as pool:
        shards = list(pool.map(lambda entry: _open_listed(url, entry), listed))
    return shards, manifest["digest"], manifest.get("provenance")


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


def _open_listed(url: str, entry: dict[str, Any]) -> StoredShard:
    shard_url = storage.join(url, f"{entry['shard']}.parquet")
    try:
        shard = read_shard_footer(shard_url)
    except FileNotFoundError:
        raise IntegrityError(
            f"expected token shard {shard_url} of the manifest, found nothing; run `flextok tokenize` again"
        ) from None
    if shard.rows != entry["rows"]:
        raise IntegrityError(
            f"expected {entry['rows']} rows in {shard_url}, found {shard.rows}; run `flextok tokenize` again"
        )
    return shard


def _refuse_other_identity(wanted: TokenMeta, shard: StoredShard) -> None:
    expected, found = wanted.identity(), shard.meta.identity()
    for name, value in expected.items():
        if found[name] != value:
            raise IntegrityError(
                f"expected token shards of one tokenizer, {name} {str(value)[:12]}, found {str(found[name])[:12]} "
                f"in {shard.url}; open the stores apart, or tokenize again with one tokenizer"
            )
