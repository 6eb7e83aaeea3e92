"""A token shard: its columns, its metadata, and the hash of its rows.

Columns are those of `token_schema`; the metadata says which tokenizer, corpus and source shard the rows come from.
`ContentHash` covers the rows themselves, so a shard's hash does not depend on row groups, compression or the version
of the Parquet writer.
"""

import dataclasses
import hashlib
import json
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
WHOLE_VIEW = "center"


@dataclasses.dataclass(frozen=True)
class TokenMeta:
    """What the schema metadata of a token shard says about its rows. Digests are hex; empty where there is none."""

    tokenizer: str
    vocab_size: int
    num_tokens: int
    """Positions stored for each image: the tokenizer's own number, or the `keep` it was cut to."""
    corpus: str = ""
    source: str = ""
    """Name of the source shard."""
    source_sha256: str = ""
    codebooks: int = 1
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

    @property
    def ids_per_row(self) -> int:
        """Numbers in a row's `tokens`: positions times codebooks, position-major."""
        return self.num_tokens * self.codebooks

    def identity(self) -> dict[str, Any]:
        """What must be equal for rows of two shards to be read as one store."""
        names = ("tokenizer", "vocab_size", "num_tokens", "codebooks", "order", "preprocess")
        return {name: getattr(self, name) for name in names}

    def to_metadata(self) -> dict[str, str]:
        """The schema metadata: `flextok.<name>` to a UTF-8 string."""
        values = {"format": FORMAT}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
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
        except TypeError as error:
            raise IntegrityError(
                f"expected all of a token shard's metadata in {where}, found too little: {error}"
            ) from None


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype of stored ids: uint16 up to a vocabulary of 65,536, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= MAX_UINT16_VOCABULARY else np.uint32)


def token_schema(meta: TokenMeta, views: bool = False) -> pa.Schema:
    """The Arrow schema of a token shard; with `views`, a column `view` follows `key`."""
    id_type = pa.from_numpy_dtype(token_dtype(meta.vocab_size))
    fields = [pa.field("key", pa.string(), nullable=False)]
    if views:
        fields.append(pa.field("view", pa.string(), nullable=False))
    fields += [
        pa.field("tokens", pa.list_(id_type, meta.ids_per_row), nullable=False),
        pa.field("length", pa.uint16(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("text", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sha256", pa.binary(32)),
    ]
    return pa.schema(fields, metadata=meta.to_metadata())


def token_table(schema: pa.Schema, ids: np.ndarray, columns: dict[str, Sequence[Any]]) -> pa.Table:
    """Rows of a token shard: ids [B, L] or [B, L, C] and the other columns by name (absent ones are null).

    `length` defaults to all positions. Raises IntegrityError when an id does not fit the vocabulary.
    """
    meta = TokenMeta.from_metadata(schema.metadata, "the schema")
    rows = len(ids)
    if rows and (int(ids.min()) < 0 or int(ids.max()) >= meta.vocab_size):
        raise IntegrityError(
            f"expected ids in 0..{meta.vocab_size - 1}, found {int(ids.min())}..{int(ids.max())}; "
            "the tokenizer does not match its own vocabulary"
        )
    if ids.size != rows * meta.ids_per_row:
        raise IntegrityError(f"expected {meta.ids_per_row} ids for each row, found ids of shape {ids.shape}")
    flat = np.ascontiguousarray(ids.reshape(-1).astype(token_dtype(meta.vocab_size)))
    values: dict[str, Any] = {"length": np.full(rows, meta.num_tokens, np.uint16), **columns}
    arrays = []
    for field in schema:
        if field.name == "tokens":
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), meta.ids_per_row))
        elif field.name in values:
            arrays.append(pa.array(values[field.name], type=field.type))
        else:
            arrays.append(pa.nulls(rows, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


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
