"""What token shards say about the tokenizer without any model: usage of the codebook, entropy, rate."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from flextok.data.tokens import TokenStore
from flextok.evaluate.config import keep_counts
from flextok.evaluate.results import Metric, Series, statistic
from flextok.metrics.tokens import entropy_bits, zipf_slope


@dataclass(frozen=True)
class TokenStatistics:
    """Counts of each id at each position: `counts_NV` int64 [L * C, V], from `rows` images."""

    store: TokenStore
    rows: int
    counts_NV: np.ndarray

    def entropy_by_position(self) -> np.ndarray:
        """Entropy in bits of the ids at each position [L]; over several codebooks the sum of theirs."""
        each = np.array([entropy_bits(row) for row in self.counts_NV])
        return each.reshape(self.store.num_tokens, self.store.codebooks).sum(axis=1)

    def metrics(self) -> list[Metric]:
        """`codebook_usage`, `codebook_perplexity`, `zipf_slope`; by K `bits_per_image` and `entropy_bits_per_image`; and
        the bytes of an id: `stored_`, `column_`, `vocabulary_` and `entropy_bytes_per_token`."""
        pooled = self.counts_NV.sum(axis=0)
        protocol = self.protocol()
        total, vocabulary = int(pooled.sum()), self.store.vocab_size
        counted = {**protocol, "tokens_counted": total}
        found = [
            statistic(
                "codebook_usage",
                float(np.count_nonzero(pooled)) / vocabulary,
                {**counted, "largest_possible": min(1.0, total / vocabulary)},
            ),
            statistic("codebook_perplexity", 2 ** entropy_bits(pooled), counted),
            statistic("zipf_slope", zipf_slope(pooled), protocol),
        ]
        raw_bits = math.log2(vocabulary) * self.store.codebooks
        coded_bits = np.cumsum(self.entropy_by_position())
        for keep in keep_counts(None, self.store.num_tokens):
            at_keep = {**protocol, "keep": keep}
            found.append(statistic("bits_per_image", raw_bits * keep, at_keep, keep))
            found.append(statistic("entropy_bits_per_image", float(coded_bits[keep - 1]), at_keep, keep))
        return found + self._storage()

    def _storage(self) -> list[Metric]:
        """What an id takes in the store, and what it would take at the least."""
        each = {
            "stored": self.store.stored_bytes_per_token,
            "column": self.store.column_bytes_per_token,
            "vocabulary": math.log2(self.store.vocab_size) / 8,
            "entropy": float(self.entropy_by_position().sum()) / self.store.meta.ids_per_row / 8,
        }
        protocol = self.protocol()
        return [statistic(f"{name}_bytes_per_token", value, protocol) for name, value in each.items()]

    def series(self) -> list[Series]:
        """`token_entropy_by_position` in bits and `codebook_usage_by_position`."""
        used = np.count_nonzero(self.counts_NV, axis=1).reshape(self.store.num_tokens, -1).mean(axis=1)
        entropy = {**self.protocol(), "unit": "bits", "definition": "entropy of the histogram of ids at each position"}
        usage = {**self.protocol(), "definition": "distinct ids / vocabulary at each position"}
        places = range(1, self.store.num_tokens + 1)
        return [
            Series("token_entropy_by_position", "position", places, self.entropy_by_position().tolist(), entropy),
            Series("codebook_usage_by_position", "position", places, (used / self.store.vocab_size).tolist(), usage),
        ]

    def protocol(self) -> dict[str, Any]:
        """Which ids were counted."""
        return {
            "tokens": self.store.digest,
            "corpus": self.store.meta.corpus,
            "tokenizer": self.store.tokenizer,
            "images": self.rows,
            "vocabulary": self.store.vocab_size,
            "positions": self.store.num_tokens,
            "codebooks": self.store.codebooks,
        }


def token_statistics(tokens_url: str) -> TokenStatistics:
    """Counts over all rows of the token store at `tokens_url`; memory holds the counts and one row group.

    Raises UsageError for a store of continuous values.
    """
    store = TokenStore.open(tokens_url)
    store.require_ids()
    counts = np.zeros((store.meta.ids_per_row, store.vocab_size), np.int64)
    for index, shard in enumerate(store.shards):
        for group in range(len(shard.row_groups)):
            column = store.read_row_group(index, group, ["tokens"])["tokens"].combine_chunks()
            ids = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, store.meta.ids_per_row)
            for place in range(store.meta.ids_per_row):
                counts[place] += np.bincount(ids[:, place], minlength=store.vocab_size)
    return TokenStatistics(store, len(store), counts)
