"""Reading token stores: a folder of token shards with a manifest, or one Parquet file of `flextok encode`.

No code of ours is needed to read the files:

    polars.read_parquet("tokens/*.parquet", columns=["key", "tokens"])
    duckdb.sql("select label, count(*) from 'tokens/*.parquet' group by label")
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

from flextok import storage
from flextok.data.tokens.files import StoredShard, flat_rows, read_manifest, read_row_group, read_shard_footer
from flextok.data.tokens.schema import WHOLE_VIEW, TokenMeta, token_schema
from flextok.digests import digest_of, digest_rows
from flextok.errors import IntegrityError, UsageError
from flextok.runtime.ahead import ahead

if TYPE_CHECKING:
    from flextok.data.tokens.stream import TokenStream

FOOTER_THREADS = 16
CACHED_ROW_GROUPS = 8


@dataclasses.dataclass(frozen=True)
class TokenRow:
    """One row; the prefix `ids[:length]` (or `values[:length]`) is what its length policy keeps."""

    key: str
    view: str
    numbers: np.ndarray
    """What its store holds, ids or continuous values."""
    length: int
    label: int | None
    text: str | None
    width: int | None
    height: int | None
    sha256: bytes | None

    @property
    def ids(self) -> np.ndarray:
        """Ids [L] or, with several codebooks, [L, C]; raises UsageError where the store holds continuous values."""
        _require(self.numbers.dtype.kind == "u", "ids", f"{self.numbers.dtype}", "values")
        return self.numbers

    @property
    def values(self) -> np.ndarray:
        """Continuous values, float [L, C]; raises UsageError where the store holds ids."""
        _require(self.numbers.dtype.kind == "f", "continuous values", "ids", "ids")
        return self.numbers


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
        return cls.joined([_open_one(storage.absolute(item)) for item in urls])

    @classmethod
    def joined(cls, stores: "Sequence[TokenStore]") -> "TokenStore":
        """The rows of several stores, one after another; raises IntegrityError where their tokenizers differ."""
        shards = [shard for store in stores for shard in store.shards]
        digests = [store.digest for store in stores]
        provenance = [block for store in stores for block in store.provenance]
        return cls(shards, digests[0] if len(digests) == 1 else digest_of(digests), provenance)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_tokens(self) -> int:
        """Positions stored for each row, L."""
        return self.meta.num_tokens

    @property
    def vocab_size(self) -> int:
        """Ids lie in 0..vocab_size-1; 0 for continuous values."""
        return self.meta.vocab_size

    @property
    def codebooks(self) -> int:
        """Numbers at each position, C: ids, or channels of a continuous latent."""
        return self.meta.codebooks

    @property
    def is_continuous(self) -> bool:
        """Whether rows hold continuous latents (`values`) rather than `ids`."""
        return self.meta.is_continuous

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
        """All rows as one Arrow table; with `keep`, `tokens` (or `values`) holds the first `keep` positions only."""
        table = self._dataset().to_table(columns=list(columns) if columns is not None else None)
        name = self.meta.column
        if keep is None or name not in table.schema.names:
            return table
        keep = self._checked_keep(keep)
        numbers = flat_rows(table[name], self.meta.ids_per_row)
        kept = np.ascontiguousarray(numbers[:, : keep * self.codebooks])
        column = pa.FixedSizeListArray.from_arrays(pa.array(kept.reshape(-1)), keep * self.codebooks)
        place = table.schema.get_field_index(name)
        table = table.set_column(place, pa.field(name, column.type, nullable=False), column)
        return table.replace_schema_metadata(dataclasses.replace(self.meta, num_tokens=keep).to_metadata())

    def ids(self, keep: int | None = None) -> np.ndarray:
        """Ids of all rows, [N, K] or [N, K, C], in the stored dtype (uint16 or uint32).

        Raises UsageError for a store of continuous values.
        """
        self.require_ids()
        ids = self._numbers(keep)
        return ids[:, :, 0] if self.codebooks == 1 else ids

    def require_ids(self) -> None:
        """Raises UsageError where the store holds continuous values."""
        _require(not self.is_continuous, "ids", f"{self.meta.values}", "values")

    def values(self, keep: int | None = None) -> np.ndarray:
        """Continuous values of all rows, [N, K, C], in the stored dtype (float32 or float16).

        Raises UsageError for a store of ids.
        """
        _require(self.is_continuous, "continuous values", "ids", "ids")
        return self._numbers(keep)

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
        numbers = np.array(values.pop(self.meta.column), self.meta.number_type)
        if self.codebooks > 1 or self.is_continuous:
            numbers = numbers.reshape(-1, self.codebooks)
        return TokenRow(numbers=numbers, view=values.pop("view", WHOLE_VIEW), **values)

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

        return TokenStream(
            self.shards, self.digest, batch_size, self._checked_keep(keep), shuffle, seed, rank, world_size
        )

    def read_row_group(self, shard: int, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group of one shard, by their numbers; raises IntegrityError where the file is not as it was opened."""
        stored = self.shards[shard]
        try:
            table = read_row_group(stored.url, group, columns)
        except FileNotFoundError:
            raise _missing(stored.url) from None
        if table.num_rows != stored.row_groups[group]:
            raise IntegrityError(
                f"expected {stored.row_groups[group]} rows in row group {group} of {stored.url}, found {table.num_rows}; "
                "run `flextok tokenize` again"
            )
        return table

    def scan(self, column: str) -> Iterator[pa.ChunkedArray]:
        """A column of all rows, a shard at a time, of which some are read ahead."""
        with concurrent.futures.ThreadPoolExecutor(FOOTER_THREADS) as pool:
            shards = range(len(self.shards))
            for _, found in ahead(lambda shard: pool.submit(self._shard_column, column, shard), shards, FOOTER_THREADS):
                yield found

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

    def _numbers(self, keep: int | None) -> np.ndarray:
        """The numbers of all rows, [N, K, C], in the stored dtype."""
        keep = self._checked_keep(keep)
        out = np.empty((len(self), keep * self.codebooks), self.meta.number_type)
        start = 0
        for batch in self._dataset().to_batches(columns=[self.meta.column]):
            rows = flat_rows(batch.column(0), self.meta.ids_per_row)
            out[start : start + len(rows)] = rows[:, : keep * self.codebooks]
            start += len(rows)
        return out.reshape(len(self), keep, self.codebooks)

    def _shard_column(self, column: str, shard: int) -> pa.ChunkedArray:
        groups = range(len(self.shards[shard].row_groups))
        found = [self.read_row_group(shard, group, [column])[column] for group in groups]
        return pa.chunked_array([chunk for part in found for chunk in part.chunks], self.schema.field(column).type)

    def _for_each_id(self, sizes: Iterable[int]) -> float:
        return sum(sizes) / max(len(self) * self.meta.ids_per_row, 1)

    def _column(self, name: str) -> pa.ChunkedArray:
        return self._dataset().to_table(columns=[name])[name]

    def _dataset(self) -> Any:
        # It brings pandas, which those who write a store have no need of.
        import pyarrow.dataset

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


def _require(holds: bool, wanted: str, found: str, instead: str) -> None:
    if not holds:
        raise UsageError(f"expected a token store of {wanted}, found {found}; read them as `{instead}`")


def _open_one(url: str) -> TokenStore:
    """The store in one folder or file."""
    if url.endswith(".parquet"):
        if not storage.exists(url):
            raise UsageError(f"expected a token file at {url}, found nothing; check the path")
        shard = read_shard_footer(url)
        return TokenStore([shard], digest_rows([(shard.name, shard.rows, shard.content_sha256)]), [])
    manifest = read_manifest(url)
    listed = manifest["shards"]
    with concurrent.futures.ThreadPoolExecutor(FOOTER_THREADS) as pool:
        shards = list(pool.map(lambda entry: _open_listed(url, entry), listed))
    return TokenStore(shards, manifest["digest"], [manifest["provenance"]] if "provenance" in manifest else [])


def _open_listed(url: str, entry: dict[str, Any]) -> StoredShard:
    shard_url = storage.join(url, f"{entry['shard']}.parquet")
    try:
        shard = read_shard_footer(shard_url)
    except FileNotFoundError:
        raise _missing(shard_url) from None
    if shard.rows != entry["rows"]:
        raise IntegrityError(
            f"expected {entry['rows']} rows in {shard_url}, found {shard.rows}; run `flextok tokenize` again"
        )
    return shard


def _missing(shard_url: str) -> IntegrityError:
    return IntegrityError(
        f"expected token shard {shard_url} of the manifest, found nothing; run `flextok tokenize` again"
    )


def _refuse_other_identity(wanted: TokenMeta, shard: StoredShard) -> None:
    expected, found = wanted.identity(), shard.meta.identity()
    for name, value in expected.items():
        if found.get(name) != value:
            raise IntegrityError(
                f"expected token shards of one tokenizer, {name} {str(value)[:12]}, found {str(found.get(name))[:12]} "
                f"in {shard.url}; open the stores apart, or tokenize again with one tokenizer"
            )
