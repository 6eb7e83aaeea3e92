"""How much of its vocabulary a token store uses, seen from its first rows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from flextok import storage
from flextok.data.tokens import TokenStore, read_manifest

ROWS_COUNTED = 10_000
"""Enough to see whether a codebook is in use; a store may have billions of ids."""


@dataclass(frozen=True)
class VocabularyUse:
    """Distinct ids among the `ids` of the first `rows`."""

    used: int
    vocabulary: int
    ids: int
    rows: int

    @property
    def share(self) -> float:
        """Of the vocabulary, in 0..1."""
        return self.used / self.vocabulary

    @property
    def share_of_uniform(self) -> float:
        """Distinct ids, divided by how many as many ids drawn uniformly have in the mean: V (1 - (1 - 1/V)^n)."""
        drawn = -math.expm1(self.ids * math.log1p(-1 / self.vocabulary)) if self.vocabulary > 1 else 1.0
        return self.used / (self.vocabulary * drawn)


def vocabulary_use(tokens_url: str, most_rows: int = ROWS_COUNTED) -> VocabularyUse | None:
    """Counted in whole row groups until there are `most_rows` rows; None for continuous tokens and for no rows."""
    used: set[int] = set()
    ids = rows = vocabulary = 0
    for vocabulary, column in _id_columns(tokens_url):  # noqa: B007 - the last one counts
        flat = column.flatten()
        used.update(flat.unique().to_pylist())
        ids, rows = ids + len(flat), rows + len(column)
        if rows >= most_rows:
            break
    return VocabularyUse(len(used), vocabulary, ids, rows) if ids else None


def _id_columns(tokens_url: str) -> Iterator[tuple[int, pa.Array]]:
    """Size of the vocabulary and ids of each row group, read one at a time."""
    for shard in read_manifest(tokens_url)["shards"]:
        store = TokenStore.open(storage.join(tokens_url, f"{shard['shard']}.parquet"))
        if store.is_continuous:
            return
        for group in range(len(store.shards[0].row_groups)):
            yield store.vocab_size, store.read_row_group(0, group, ["tokens"])["tokens"].combine_chunks()
