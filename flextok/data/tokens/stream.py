"""Batches of tokens for training: shuffled, split by rank and worker, resumable, and even for every rank."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from flextok.data.tokens.files import StoredShard, flat_rows, read_row_group
from flextok.errors import UsageError

WINDOW_ROWS = 65_536


class TokenStream(IterableDataset):
    """An epoch of batches each time it is iterated; the same sequence whatever the number of DataLoader workers.

    A batch is `{ids: int64 [B, K] or [B, K, C], length: int64 [B], label: int64 [B] (-1: none), row: int64 [B]}`,
    `row` being the row number in the store; of continuous latents it has `values`, float32 [B, K, C], in place of `ids`. Give it to `DataLoader(stream, batch_size=None, num_workers=n)`.

    Every epoch lines up the row groups in an order of its own and gives each rank an equal stretch of that line, cut
    to whole batches (fewer than world_size * batch_size rows stay out of an epoch, others each time). Rows are then
    shuffled within windows of about 65,536 rows, which is the memory it needs. Without `shuffle` rows come in
    store order.

    `state_dict` gives the position. Iterated in this process it is kept by itself; DataLoader workers advance copies,
    so with them say which epoch comes (`set_epoch`) and how many batches were taken (`state_dict(step=n)`).
    """

    def __init__(
        self,
        shards: Sequence[StoredShard],
        digest: str,
        batch_size: int,
        keep: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world_size: int,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        self.shards, self.digest, self.meta = shards, digest, shards[0].meta
        self.batch_size, self.keep = batch_size, keep
        self.shuffle, self.seed, self.rank, self.world_size = shuffle, seed, rank, world_size
        self.epoch = 0
        self.step = 0
        num_rows = sum(shard.rows for shard in shards)
        self.steps_per_epoch = num_rows // (batch_size * world_size)
        if self.steps_per_epoch == 0:
            raise UsageError(
                f"expected at least batch_size * world_size = {batch_size * world_size} rows for one step, "
                f"found {num_rows}; use a smaller batch or more data"
            )
        groups = [(s, g, rows) for s, shard in enumerate(shards) for g, rows in enumerate(shard.row_groups)]
        self._groups = [group for group in groups if group[2]]
        self._group_starts = list(itertools.accumulate((rows for _, _, rows in self._groups), initial=0))

    def __len__(self) -> int:
        """Batches of an epoch, the same for every rank."""
        return self.steps_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Start at the first batch of `epoch`."""
        self.epoch, self.step = epoch, 0

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """The position after `step` batches of this epoch (default: as many as were taken in this process)."""
        return {**self._recipe(), "epoch": self.epoch, "step": self.step if step is None else step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; raises ValueError when it belongs to other data, batches or ranks."""
        for name, value in self._recipe().items():
            if state.get(name) != value:
                raise ValueError(f"cannot resume: {name} is {value!r} here, {state.get(name)!r} in the state")
        self.epoch, self.step = state["epoch"], state["step"]
        if self.step >= self.steps_per_epoch:
            self.epoch, self.step = self.epoch + 1, 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The rest of the epoch."""
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        window_steps = max(1, WINDOW_ROWS // self.batch_size)
        line = self._line()
        loaded, window = -1, {}
        for step in range(self.step + offset, self.steps_per_epoch, stride):
            if step // window_steps != loaded:
                loaded = step // window_steps
                window = self._load_window(line, loaded, window_steps)
            start = (step - loaded * window_steps) * self.batch_size
            if stride == 1:
                self.step = step + 1
            yield {name: values[start : start + self.batch_size].clone() for name, values in window.items()}
        self.epoch, self.step = self.epoch + 1, 0

    def _recipe(self) -> dict[str, Any]:
        names = ("batch_size", "keep", "shuffle", "seed", "rank", "world_size")
        return {"digest": self.digest, **{name: getattr(self, name) for name in names}}

    def _line(self) -> list[int]:
        """Numbers of the row groups in this epoch's order, the same for every rank."""
        order = np.arange(len(self._groups))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        return order.tolist()

    def _load_window(self, line: list[int], window: int, window_steps: int) -> dict[str, torch.Tensor]:
        """The rows of one window of this rank, shuffled."""
        first = self.rank * self.steps_per_epoch * self.batch_size
        start = first + window * window_steps * self.batch_size
        stop = first + min((window + 1) * window_steps, self.steps_per_epoch) * self.batch_size
        starts = list(itertools.accumulate((self._groups[group][2] for group in line), initial=0))
        place = bisect.bisect_right(starts, start) - 1
        tables, rows = [], []
        while place < len(line) and starts[place] < stop:
            shard, group, count = self._groups[line[place]]
            low, high = max(start - starts[place], 0), min(stop - starts[place], count)
            table = read_row_group(self.shards[shard].url, group, (self.meta.column, "length", "label"))
            tables.append(table.slice(low, high - low))
            rows.append(self._group_starts[line[place]] + np.arange(low, high))
            place += 1
        table = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
        order = np.arange(table.num_rows)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch, self.rank, window]).permutation(order)
        values = {
            **self._numbers(table, order),
            "length": table["length"].to_numpy().astype(np.int64)[order],
            "label": table["label"].fill_null(-1).to_numpy().astype(np.int64)[order],
            "row": np.concatenate(rows)[order].astype(np.int64),
        }
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}

    def _numbers(self, table: pa.Table, order: np.ndarray) -> dict[str, np.ndarray]:
        """`ids` or `values` of the rows of `table` in this order."""
        meta = self.meta
        rows = flat_rows(table[meta.column], meta.ids_per_row)
        kept = rows.reshape(-1, meta.num_tokens, meta.codebooks)[order, : self.keep]
        if meta.is_continuous:
            return {"values": kept.astype(np.float32)}
        ids = kept.astype(np.int64)
        return {"ids": ids[:, :, 0] if meta.codebooks == 1 else ids}
