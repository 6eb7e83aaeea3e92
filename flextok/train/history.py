"""The history of a training: rows of steps, names and values, which its checkpoint keeps and sinks are handed as they come."""

import contextlib
import json
import logging
import queue
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from flextok import storage
from flextok.model.checkpoint import TRAINING_FACTS
from flextok.runtime import interrupts
from flextok.train.sinks.base import HistoryRow, PictureSink, RunInfo, Sink, SinkSettings

logger = logging.getLogger(__name__)

CLOSE_S = 30.0
"""Longest wait for a sink at the end of a training; INTERRUPTED_CLOSE_S where a signal ends it."""
INTERRUPTED_CLOSE_S = 2.0
DETAIL = re.compile(r"(machine|alarm)/|(train|val)/(grad_norm|update_ratio|entropy_by_position|loss_by_\w+)/")
Picture = tuple[int, np.ndarray]
"""Steps done, and what was drawn then."""
SCHEMA = pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])


class History:
    """All rows so far; each is handed on to `sinks` once."""

    def __init__(self, sinks: Sequence["BackgroundSink"] = ()):
        self.rows: list[HistoryRow] = []
        self._series: dict[str, list[tuple[int, float]]] = {}
        self._sinks = sinks

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Rows for `values` after `step` steps."""
        new = [(step, name, float(value)) for name, value in values.items()]
        self._keep(new)
        for sink in self._sinks:
            sink.write(new)

    def show(self, step: int, picture_HWC: np.ndarray) -> None:
        """Hand a picture to the sinks that take some; it is none of the rows."""
        for sink in self._sinks:
            sink.show(step, picture_HWC)

    def take_over(self, rows: Iterable[HistoryRow]) -> None:
        """Go on after `rows`, which the sinks have had."""
        self.rows, self._series = [], {}
        self._keep(rows)

    def _keep(self, rows: Iterable[HistoryRow]) -> None:
        for row in rows:
            step, name, value = row
            self.rows.append(row)
            self._series.setdefault(name, []).append((step, value))

    def names(self) -> list[str]:
        """All that was recorded."""
        return list(self._series)

    def series(self, name: str) -> list[tuple[int, float]]:
        """Steps and values recorded under `name`, in order."""
        return self._series.get(name, [])

    def values(self, name: str, most: int | None = None, after: int = 0) -> list[float]:
        """What was recorded under `name` after step `after`, in order; the last `most` of it."""
        found = self.series(name)
        return [value for step, value in (found if most is None else found[-most:]) if step > after]


def headlines(rows: list[HistoryRow]) -> dict[str, float]:
    """The last value of each name, but for details that only curves are made of: of modules, groups and machines."""
    last = {name: value for _, name, value in rows}
    return {name: value for name, value in last.items() if not DETAIL.match(name)}


def history_table(rows: list[HistoryRow], facts: Mapping[str, Any]) -> pa.Table:
    """The history as a table of `step, name, value`; `facts` of the training stand in its metadata."""
    steps, names, values = zip(*rows, strict=True) if rows else ((), (), ())
    schema = SCHEMA.with_metadata({TRAINING_FACTS: json.dumps(facts)})
    return pa.table([pa.array(steps), pa.array(names), pa.array(values)], schema=schema)


class BackgroundSink:
    """A sink that is opened and written to by a thread of its own: however slow it is or whatever it raises, a training
    neither waits for it nor ends by it. A failure is told in one line, and what comes after it is dropped."""

    def __init__(self, settings: SinkSettings, run: RunInfo):
        self._settings, self._run = settings, run
        self._queue: queue.SimpleQueue[list[HistoryRow] | Picture | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"sink {settings.kind}", daemon=True)
        self._is_finished = False
        self._thread.start()

    def write(self, rows: list[HistoryRow]) -> None:
        """Hand over rows; returns at once."""
        self._queue.put(rows)

    def show(self, step: int, picture_HWC: np.ndarray) -> None:
        """Hand over a picture; returns at once."""
        self._queue.put((step, picture_HWC))

    def close(self, is_finished: bool) -> None:
        """Wait a while for what was handed over."""
        self._is_finished = is_finished
        self._queue.put(None)
        self._thread.join(INTERRUPTED_CLOSE_S if interrupts.pending() else CLOSE_S)
        if self._thread.is_alive():
            logger.warning("the sink '%s' did not end in time: its last rows may be missing", self._settings.kind)

    def _work(self) -> None:
        sink: Sink | None = None
        try:
            while (given := self._queue.get()) is not None:
                if not given:
                    continue
                if sink is None:
                    sink = self._settings.open(self._run, given[0] if isinstance(given, tuple) else given[0][0])
                if isinstance(given, list):
                    sink.write(given)
                elif isinstance(sink, PictureSink):
                    sink.show(*given)
            if sink is not None:
                sink.close(self._is_finished)
        except Exception as error:  # noqa: BLE001 - whatever another's package raises
            lines = storage.redact(str(error)).strip().splitlines() or [""]
            logger.warning(
                "the sink '%s' failed and gets nothing more, the training goes on: %s: %s",
                self._settings.kind, type(error).__name__, lines[0],
            )  # fmt: skip


@contextlib.contextmanager
def open_sinks(settings: Sequence[SinkSettings], run: RunInfo) -> Iterator[list[BackgroundSink]]:
    """The sinks of a training, closed with the block."""
    sinks = [BackgroundSink(each, run) for each in settings]
    is_finished = False
    try:
        yield sinks
        is_finished = True
    finally:
        for sink in sinks:
            sink.close(is_finished)
