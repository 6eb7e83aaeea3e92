"""What a token store holds, in numbers."""

import math
from typing import Any

import numpy as np

from flextok.data.tokens.store import TokenStore


def summarize_tokens(url: str) -> dict[str, Any]:
    """Counts, rate and vocabulary usage of the store `url`, read in full.

    `bits_per_image` is length * codebooks * log2(vocabulary), averaged; `entropy_bits_per_token` is that of the
    histogram of all ids (usage cannot exceed tokens / vocabulary, so `tokens` stands beside it). Continuous values
    have no vocabulary, but a mean and a standard deviation. `stored_bytes_per_token` counts whole files,
    `column_bytes_per_token` the compressed numbers alone.
    """
    store = TokenStore.open(url)
    lengths = store.lengths()
    kept = np.arange(store.num_tokens) < lengths[:, None]
    return {
        "digest": store.digest,
        "tokenizer": store.tokenizer,
        "corpus": store.meta.corpus,
        "rows": len(store),
        "shards": len(store.shards),
        "num_tokens": store.num_tokens,
        "codebooks": store.codebooks,
        "order": store.meta.order,
        "dtype": store.meta.dtype,
        "mean_length": float(lengths.mean()) if len(store) else 0.0,
        **(_of_values(store, kept) if store.is_continuous else _of_ids(store, kept, lengths)),
        "stored_bytes": sum(shard.bytes for shard in store.shards),
        "stored_bytes_per_token": store.stored_bytes_per_token,
        "column_bytes_per_token": store.column_bytes_per_token,
    }


def _of_ids(store: TokenStore, kept_NL: np.ndarray, lengths_N: np.ndarray) -> dict[str, Any]:
    ids = store.ids().reshape(len(store), store.num_tokens, store.codebooks)[kept_NL]
    counts = np.unique(ids, return_counts=True)[1]
    shares = counts / max(counts.sum(), 1)
    bits = float(lengths_N.mean()) * store.codebooks * math.log2(store.vocab_size) if len(store) else 0.0
    return {
        "vocab_size": store.vocab_size,
        "bits_per_image": bits,
        "tokens": int(counts.sum()),
        "used_ids": len(counts),
        "codebook_usage": len(counts) / store.vocab_size,
        "entropy_bits_per_token": float(-(shares * np.log2(shares)).sum()) if len(counts) else 0.0,
        "log2_vocabulary": math.log2(store.vocab_size),
    }


def _of_values(store: TokenStore, kept_NL: np.ndarray) -> dict[str, Any]:
    values = store.values()[kept_NL].astype(np.float64)
    return {
        "values": store.meta.values,
        "tokens": len(values),
        "mean": float(values.mean()) if len(values) else 0.0,
        "std": float(values.std()) if len(values) else 0.0,
    }
