"""Progress on stderr: a bar with time left on a terminal, a line every few seconds elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flextok.runtime import interrupts

LINE_EVERY_S = 15.0


class Task:
    """A running count of `total` units; `advance` or `update` it as the work goes. Each count is also a place where an
    interrupt that got lost is raised."""

    def __init__(self, label: str, total: int, unit: str):
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.note = ""
        self._started = time.monotonic()
        self._taken_over: int | None = None

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count `count` more units; `note` (for instance the loss) stands beside the count."""
        if self._taken_over is None:
            self._taken_over = 0
        self.update(self.done + count, note)

    def update(self, done: int, note: str | None = None) -> None:
        """Set the count of finished units; a first count above 0 is earlier work that is taken over."""
        interrupts.check()
        if self._taken_over is None:
            self._taken_over = done
        self.done = done
        if note is not None:
            self.note = note
        self._show()

    def rate(self) -> float:
        """Units a second since the start, without those taken over from earlier work."""
        return (self.done - (self._taken_over or 0)) / max(time.monotonic() - self._started, 1e-9)

    def _show(self) -> None:
        raise NotImplementedError


class _BarTask(Task):
    def __init__(self, label: str, total: int, unit: str, progress: Progress):
        super().__init__(label, total, unit)
        self._progress = progress
        self._row = progress.add_task(label, total=total, note="")

    def _show(self) -> None:
        note = f"{self.rate():.1f} {self.unit}/s {self.note}"
        self._progress.update(self._row, completed=self.done, note=note)


class _LineTask(Task):
    def __init__(self, label: str, total: int, unit: str):
        super().__init__(label, total, unit)
        self._next_line = self._started

    def _show(self) -> None:
        now = time.monotonic()
        if now < self._next_line and self.done < self.total:
            return
        self._next_line = now + LINE_EVERY_S
        text = f"{self.label}: {self.done}/{self.total} {self.unit}"
        if rate := self.rate():
            text += f", {rate:.1f}/s, {(self.total - self.done) / rate:.0f} s left"
        print(f"{text} {self.note}".rstrip(), file=sys.stderr, flush=True)


@contextlib.contextmanager
def track(label: str, total: int, unit: str) -> Iterator[Task]:
    """A Task shown on stderr while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LineTask(label, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield _BarTask(label, total, unit, progress)
