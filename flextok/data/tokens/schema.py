"""A token shard: its columns, its metadata, and the hash of its rows.

A row holds ids of a vocabulary in the column `tokens`, or continuous latents in the column `values`. Columns are those of `token_schema`; the metadata says which tokenizer, corpus and source shard the rows come from.
`ContentHash` covers the rows themselves, so a shard's hash does not depend on row groups, compression or the version
of the Parquet writer.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from flextok.digests import digest_of
from flextok.errors import IntegrityError
from flextok.version import __version__

FORMAT = "flextok.tokens/1"
PREFIX = "flextok."
MAX_UINT16_VOCABULARY = 65_536
IDS = "ids"
CONTINUOUS = ("float32", "float16")
WHOLE_VIEW = "center"
VALUE_BITS = 32
"""Of a continuous value, as the tokenizers here give it."""


@dataclasses.dataclass(frozen=True)
class TokenMeta:
    """What the schema metadata of a token shard says about its rows. Digests are hex; empty where there is none."""

    tokenizer: str
    vocab_size: int
    """0 for continuous values, which have no vocabulary."""
    num_tokens: int
    """Positions stored for each image: the tokenizer's own number, or the `keep` it was cut to."""
    corpus: str = ""
    source: str = ""
    """Name of the source shard."""
    source_sha256: str = ""
    codebooks: int = 1
    """Numbers at each position: ids of several codebooks, or the channels of a continuous latent."""
    order: str = "nested"
    """"nested": every prefix of a row's tokens may be decoded."""
    preprocess: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    """What the tokenizer computed in."""
    batch_size: int = 0
    """Images in one call of the tokenizer; it may decide the last bit of a latent, hence is written down."""
    code_version: str = __version__
    fingerprint: str = ""
    """Hash of all that decides the content of this shard; empty for tokens which no bulk job made."""
    values: str = IDS
    """What a row holds: "ids" of a vocabulary, or continuous latents as "float32" or "float16"."""

    def __post_init__(self) -> None:
        if self.values not in (IDS, *CONTINUOUS):
            raise ValueError(f"expected values {IDS}, {' or '.join(CONTINUOUS)}, found {self.values!r}")
        if self.is_continuous != (self.vocab_size == 0):
            raise ValueError(f"expected a vocabulary for ids and none for {self.values}, found {self.vocab_size}")

    @property
    def is_continuous(self) -> bool:
        """Whether rows hold continuous latents, which no vocabulary counts."""
        return self.values != IDS

    @property
    def column(self) -> str:
        """The column of the numbers."""
        return "values" if self.is_continuous else "tokens"

    @property
    def number_type(self) -> np.dtype:
        """The dtype of the stored numbers."""
        return np.dtype(self.values) if self.is_continuous else token_dtype(self.vocab_size)

    @property
    def ids_per_row(self) -> int:
        """Numbers in a row: positions times codebooks (or channels), position-major."""
        return self.num_tokens * self.codebooks

    def identity(self) -> dict[str, Any]:
        """What must be equal for rows of two shards to be read as one store."""
        names = ("tokenizer", "vocab_size", "num_tokens", "codebooks", "order", "preprocess")
        found = {name: getattr(self, name) for name in names}
        return found | {"values": self.values} if self.is_continuous else found

    def to_metadata(self) -> dict[str, str]:
        """The schema metadata: `flextok.<name>` to a UTF-8 string."""
        values = {"format": FORMAT}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "values" and not self.is_continuous:
                continue  # as in the shards that were written before there was a choice
            values[field.name] = json.dumps(value, sort_keys=True) if field.name == "preprocess" else str(value)
        return {PREFIX + name: value for name, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes] | None, where: str) -> "TokenMeta":
        """The meta written in `metadata`; raises IntegrityError when it is not a token shard's."""
        found = {key.decode(): value.decode() for key, value in (metadata or {}).items() if key.startswith(b"flextok.")}
        if found.get("flextok.format") != FORMAT:
            raise IntegrityError(
                f"expected a token shard ({FORMAT}) in {where}, found format {found.get('flextok.format')!r}; "
                "give a file written by `flextok tokenize` or `flextok encode`"
            )
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            text = found.get(PREFIX + field.name)
            if text is not None:
                parse = {"preprocess": json.loads}.get(field.name, int if field.type is int else str)
                values[field.name] = parse(text)
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise IntegrityError(f"expected a token shard's metadata in {where}, found: {error}") from None


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype of stored ids: uint16 up to a vocabulary of 65,536, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= MAX_UINT16_VOCABULARY else np.uint32)


def token_schema(meta: TokenMeta, views: bool = False) -> pa.Schema:
    """The Arrow schema of a token shard; with `views`, a column `view` follows `key`."""
    number_type = pa.from_numpy_dtype(meta.number_type)
    fields = [pa.field("key", pa.string(), nullable=False)]
    if views:
        fields.append(pa.field("view", pa.string(), nullable=False))
    fields += [
        pa.field(meta.column, pa.list_(number_type, meta.ids_per_row), nullable=False),
        pa.field("length", pa.uint16(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("text", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sha256", pa.binary(32)),
    ]
    return pa.schema(fields, metadata=meta.to_metadata())


def values_of(vocab_size: int) -> str:
    """What a tokenizer's rows hold: ids, or float32 values where it has no vocabulary."""
    return IDS if vocab_size else CONTINUOUS[0]


def bits_of(vocab_size: int) -> float:
    """Bits of an id at the most, or of a continuous value (vocab_size 0)."""
    return math.log2(vocab_size) if vocab_size else VALUE_BITS


def token_table(schema: pa.Schema, numbers: np.ndarray, columns: dict[str, Sequence[Any]]) -> pa.Table:
    """Rows of a token shard: ids (or continuous values) [B, L] or [B, L, C], and the other columns by name (absent ones
    are null).

    `length` defaults to all positions. Raises IntegrityError when an id does not fit the vocabulary, or a value is not
    finite.
    """
    meta = TokenMeta.from_metadata(schema.metadata, "the schema")
    rows = len(numbers)
    if numbers.size != rows * meta.ids_per_row:
        raise IntegrityError(f"expected {meta.ids_per_row} {meta.column} for each row, found shape {numbers.shape}")
    if fault := range_fault(meta, numbers):
        raise IntegrityError(f"{fault}; the tokenizer does not match its own vocabulary or is spoiled")
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(numbers.reshape(-1).astype(meta.number_type))
    if meta.is_continuous and not np.isfinite(flat).all():
        raise IntegrityError(f"expected values that {meta.values} can hold, found larger ones; store them as float32")
    values: dict[str, Any] = {"length": np.full(rows, meta.num_tokens, np.uint16), **columns}
    arrays = []
    for field in schema:
        if field.name == meta.column:
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), meta.ids_per_row))
        elif field.name in values:
            arrays.append(pa.array(values[field.name], type=field.type))
        else:
            arrays.append(pa.nulls(rows, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def range_fault(meta: TokenMeta, numbers: np.ndarray) -> str | None:
    """What is wrong with the numbers of some rows: ids beyond the vocabulary, values that are not finite; None if nothing."""
    if meta.is_continuous:
        wrong = numbers.size - int(np.isfinite(numbers).sum())
        return f"expected finite values, found {wrong} of {numbers.size} that are not" if wrong else None
    if numbers.size and (int(numbers.min()) < 0 or int(numbers.max()) >= meta.vocab_size):
        return f"expected ids in 0..{meta.vocab_size - 1}, found {int(numbers.min())}..{int(numbers.max())}"
    return None


class ContentHash:
    """sha256 of the rows of a token shard, fed in pieces of any size.

    Each column is hashed as a stream of its own (values little-endian, lengths apart from bytes, nulls marked), so
    the result depends on the rows and their order only. What decides how ids are read (tokenizer, vocabulary,
    positions, codebooks, order, preprocessing) is part of it; code version and time are not.
    """

    def __init__(self, meta: TokenMeta):
        self.rows = 0
        self._identity = meta.identity()
        self._streams: dict[str, tuple[Any, Any]] = {}

    def update(self, table: pa.Table) -> None:
        """Add the rows of `table`."""
        self.rows += table.num_rows
        for batch in table.to_batches():
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                marks, content = self._streams.setdefault(name, (hashlib.sha256(), hashlib.sha256()))
                _feed(column, marks, content)

    def hexdigest(self) -> str:
        """The hash of all rows so far."""
        streams = {name: [marks.hexdigest(), content.hexdigest()] for name, (marks, content) in self._streams.items()}
        return digest_of({"identity": self._identity, "rows": self.rows, "columns": streams if self.rows else {}})


def _feed(column: pa.Array, marks: Any, content: Any) -> None:
    """Add a column's null marks (or string lengths, -1 for null) to `marks` and its values to `content`."""
    if pa.types.is_fixed_size_list(column.type):
        content.update(memoryview(column.flatten().to_numpy(zero_copy_only=False)))
        return
    if pa.types.is_string(column.type):
        lengths = column.cast(pa.binary()).to_pylist()
        marks.update(np.array([-1 if value is None else len(value) for value in lengths], "<i4").tobytes())
        content.update(b"".join(value for value in lengths if value is not None))
        return
    marks.update(column.is_null().to_numpy(zero_copy_only=False).astype(np.uint8).tobytes())
    if pa.types.is_fixed_size_binary(column.type):
        content.update(b"".join(value for value in column.to_pylist() if value is not None))
    else:
        content.update(column.drop_null().to_numpy(zero_copy_only=False).tobytes())
