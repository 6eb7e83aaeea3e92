"""Peak memory of reading token stores in the order of a training: `memory_process.py FOLDER IDS ROWS WINDOWS SHARDS...`

For each number of SHARDS, of ROWS images of IDS ids each, it makes a store whose shards are one file by many names, reads
WINDOWS windows of it, and prints the images of the store and the process's peak so far in MiB.
"""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np

from flextok.data.tokens import (
    TokenMeta,
    TokenStore,
    token_schema,
    token_table,
    write_token_manifest,
    write_token_shard,
)
from flextok.runtime.memory import peak_memory
from flextok.train import data
from flextok.train.config import PriorRecipe
from flextok.train.prior import prior_config
from flextok.train.sample_order import sample_order

BATCH = 1024
RECIPE = {
    "model": {"width": 32, "depth": 1, "head_dim": 16, "condition": "class"},
    "train": {"steps": 1, "batch_size": 1},
}


def make_store(folder: Path, ids: int, rows: int, shards: int) -> str:
    meta = TokenMeta(tokenizer="ab" * 32, vocab_size=64_000, num_tokens=ids)
    values = np.random.default_rng(0).integers(64_000, size=(rows, ids))
    columns = {
        "key": [f"k{row}" for row in range(rows)],
        "label": [row % 1000 for row in range(rows)],
        "text": [
            f"a picture of thing number {row} before a wall, with a caption of usual length" for row in range(rows)
        ],
    }
    first = folder / "000000.parquet"
    record = write_token_shard(str(first), token_schema(meta), [token_table(token_schema(meta), values, columns)])
    records = [dataclasses.replace(record, shard=f"{number:06d}") for number in range(shards)]
    for record in records[1:]:
        os.link(first, folder / f"{record.shard}.parquet")
    write_token_manifest(str(folder), "tokens", records, meta, [], {})
    return str(folder)


def read_windows(url: str, windows: int, with_texts: bool) -> int:
    store = TokenStore.open(url)
    prior_config(PriorRecipe.model_validate(RECIPE), store)
    rows = data.TokenRows(store, with_texts=with_texts)
    assert rows.windows is not None
    order = sample_order(0, len(rows), rows.windows, rows.weights)
    for start in range(0, min(windows * rows.windows.samples, len(rows)), BATCH):
        rows.fetch(order.indices(range(start, start + BATCH)))
    return len(rows)


if __name__ == "__main__":
    folder, ids, rows, windows, *counts = sys.argv[1:]
    if "WINDOW_BYTES" in os.environ:
        data.WINDOW_BYTES = int(os.environ["WINDOW_BYTES"])
    print(0, peak_memory() / 2**20)
    for count in counts:
        url = make_store(Path(folder) / count, int(ids), int(rows), int(count))
        print(read_windows(url, int(windows), "TEXTS" in os.environ), peak_memory() / 2**20, flush=True)
