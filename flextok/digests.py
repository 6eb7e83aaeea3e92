"""Digests: sha256 over canonical content, never over timestamps, paths or a writer's version."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal content gives equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest_of(value: Any) -> str:
    """Hex sha256 of a JSON-able value's canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_rows(rows: Iterable[tuple[str, int, str]]) -> str:
    """Digest of a data set from its (name, rows, content hash) triples, in any order."""
    return digest_of(sorted([name, count, content] for name, count, content in rows))


def digest_arrays(arrays: dict[str, np.ndarray], config: Any) -> str:
    """Digest of a checkpoint: every array's name, dtype, shape and bytes by sorted name, then its config."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    sha.update(canonical_json(config).encode())
    return sha.hexdigest()
