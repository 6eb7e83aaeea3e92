"""The actor that draws samples: holds the prior, turns one range of samples after another into a shard of tokens."""

import contextlib
import functools
import json
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from flextok.data.corpus.reader import Shard
from flextok.data.rejects import Reject
from flextok.data.tokens import ShardRecord, TokenMeta, token_table, write_token_shard
from flextok.errors import IntegrityError
from flextok.evaluate.config import SamplingConfig
from flextok.evaluate.samples.condition import Condition
from flextok.model.load import load_prior
from flextok.model.sampling.config import DrawConfig
from flextok.runtime.storage_errors import telling_storage_errors
from flextok.tokenize.fitness import Proof
from flextok.tokenize.tasks import Finished, TokenTask, finished_record
from flextok.tokenize.worker import ShardWorker


@dataclass(frozen=True)
class DrawTask(TokenTask):
    """A shard of samples to draw."""

    first: int
    """Number of its first sample; the others follow."""
    side_px: int
    """Side of their pictures."""

    @property
    def rows(self) -> range:
        """The numbers of its samples."""
        return range(self.first, self.first + self.source.samples)

    @classmethod
    def from_json(cls, text: str) -> "DrawTask":
        """The task that `task_to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "source": Shard(**values["source"]), "meta": TokenMeta(**values["meta"])})


class Sampler:
    """A prior with what steers its samples. `positions` of each are drawn (None: all)."""

    def __init__(
        self,
        prior_url: str,
        condition: Condition,
        config: SamplingConfig,
        device: str,
        positions: int | None = None,
    ):
        self.prior = load_prior(prior_url, device)
        self.condition, self.config = condition, config
        self._positions = positions

    @torch.inference_mode()
    def __call__(self, rows: range) -> np.ndarray:
        """The ids of the samples `rows`, int64 [B, K] or [B, K, C]."""
        ids = self.prior.generate(
            labels=[self.condition.label(row) or 0 for row in rows],
            text=[self.condition.text(row) or "" for row in rows],
            num=len(rows),
            keep=self._positions,
            seed=self.config.seed,
            sample_ids=rows,
            **dict(self.config.samples.part(DrawConfig)),
        )
        return ids.cpu().numpy()


class SampleDrawer(ShardWorker[DrawTask, Sampler]):
    """Turns ranges of samples into shards of their tokens, see `ShardWorker`.

    A sample depends on the seed and its number, and batches are cut within a shard: who draws a shard, and how often it
    was begun, decides nothing.
    """

    parse = staticmethod(DrawTask.from_json)

    def __init__(
        self,
        prior_url: str,
        digest: str,
        condition: Condition,
        config: dict[str, Any],
        positions: int,
        device: str,
        threads: int | None,
        monitor: Any = None,
        members: bytes = b"",
        proof: Proof | None = None,
    ):
        self._model_turn = threading.Lock()
        load = functools.partial(_ready_sampler, prior_url, digest, condition, config, positions, device, threads)
        super().__init__(load, monitor, members, proof)

    def _finished(self, task: DrawTask) -> Finished | None:
        return finished_record(task)

    def _attempt(self, task: DrawTask) -> tuple[ShardRecord, list[Reject], str]:
        with contextlib.closing(self._tables(task)) as tables:
            return write_token_shard(task.dest, task.schema, tables), [], ""

    def _tables(self, task: DrawTask) -> Generator[pa.Table, None, None]:
        """The rows of a shard, a batch at a time. The prior is free again while the file's end is still on its way."""
        done, told = 0, time.monotonic()
        with self._model_turn:
            for rows in batch_ranges(task.rows, self.model.config.batch_size):
                sides = [task.side_px] * len(rows)
                columns = {
                    "key": [sample_key(row) for row in rows],
                    "label": [self.model.condition.label(row) for row in rows],
                    "text": [self.model.condition.text(row) for row in rows],
                    "width": sides,
                    "height": sides,
                }
                yield token_table(task.schema, self.model(rows), columns)
                done += len(rows)
                told = self._tell(task, done, told)


def sample_key(number: int) -> str:
    """The key of a sample."""
    return f"{number:06d}"


def batch_ranges(rows: range, size: int) -> Iterator[range]:
    """`rows`, `size` at a time."""
    for start in range(rows.start, rows.stop, size):
        yield range(start, min(start + size, rows.stop))


def _ready_sampler(
    prior_url: str,
    digest: str,
    condition: Condition,
    values: dict[str, Any],
    positions: int,
    device: str,
    threads: int | None,
) -> Sampler:
    """The prior, which must be that of the driver. Raises FlextokError where it cannot be had."""
    if threads is not None:
        torch.set_num_threads(threads)
    with telling_storage_errors(f"load {prior_url}"):
        sampler = Sampler(prior_url, condition, SamplingConfig(**values), device, positions)
    if sampler.prior.digest != digest:
        raise IntegrityError(f"expected prior {digest[:12]} at {prior_url}, found {sampler.prior.digest[:12]}")
    return sampler
