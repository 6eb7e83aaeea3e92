"""Draws the images that are asked for, many at once, in one thread of its own.

A batch is what waits and is drawn by one law: ids by the same guidance and temperature, of whatever classes, captions, seeds
and lengths. It goes from stop to stop; at each, images that are done are given away, and they and those whose client has gone
are in the batch no more. A batch takes in nobody on the way.
"""

import asyncio
import collections
import contextlib
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flextok.data.images import to_png, to_uint8
from flextok.errors import FlextokError
from flextok.model.priors.base import Prior
from flextok.model.rng import normal_for
from flextok.model.sampling.config import DrawConfig
from flextok.model.tokenizer import Tokenizer
from flextok.serve.request import GenerateRequest

logger = logging.getLogger(__name__)

GATHER_S = 0.005
"""How long a first image waits for others to be drawn with."""
LOOK_EVERY = 16
"""Positions after which a batch looks who is still there."""


class Busy(FlextokError):
    """As many wait as may; `retry_after_s` is about when some of them have been drawn."""

    def __init__(self, waiting: int, retry_after_s: int):
        super().__init__(f"expected a free place, found {waiting} waiting; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Ending(FlextokError):
    """The server draws nothing any more."""

    def __init__(self) -> None:
        super().__init__("expected a serving process, found it ending; ask another or later")


@dataclass(frozen=True)
class Drawn:
    """An image at `keep` positions: its ids, and the PNG file where that was asked for."""

    keep: int
    ids: list[int] | list[list[int]]
    png: bytes | None
    is_last: bool


@dataclass(eq=False)
class Job:
    """A request at work. `events` are Drawn, or the exception that ended it, and are read in the loop that submitted it."""

    request: GenerateRequest
    law: DrawConfig
    keep: int
    stops: frozenset[int]
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Drawn | Exception]" = field(default_factory=asyncio.Queue)
    sent: int = 0
    has_gone: bool = False

    def post(self, event: Drawn | Exception) -> None:
        """Give `event` to the client, from any thread."""
        with contextlib.suppress(RuntimeError):  # its loop has ended, and with it the client
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Engine:
    """Draws `batch` images at once at the most, while at most `queue` others wait."""

    def __init__(self, prior: Prior, tokenizer: Tokenizer, batch: int, queue: int, drawn: Callable[[int], None]):
        self.prior, self.tokenizer, self.batch, self.queue = prior.eval(), tokenizer, batch, queue
        self._tell_drawn = drawn
        self._waiting: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._ending = False
        self._batch_s = 1.0
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._ending

    @property
    def waiting(self) -> int:
        """Images that wait to be drawn."""
        return len(self._waiting)

    def submit(self, request: GenerateRequest) -> Job:
        """A job for `request`, from a running event loop; raises Busy or Ending."""
        keep = request.keep or self.prior.config.num_tokens
        job = Job(request, request.law, keep, frozenset(_stops(keep, request.stream)), asyncio.get_running_loop())
        with self._changed:
            if not self.is_alive:
                raise Ending()
            if len(self._waiting) >= self.queue:
                batches = math.ceil(len(self._waiting) / self.batch)
                raise Busy(len(self._waiting), min(60, max(1, round(batches * self._batch_s))))
            self._waiting.append(job)
            self._changed.notify()
        return job

    def leave(self, job: Job) -> None:
        """Free the place of a job whose client has gone or has all it asked for."""
        with self._changed:
            job.has_gone = True
            with contextlib.suppress(ValueError):
                self._waiting.remove(job)

    def stop(self, within_s: float) -> bool:
        """End; who waits or is being drawn gets `Ending`. Whether the thread has ended within that time."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while jobs := self._next_jobs():
            started = time.monotonic()
            self._draw_or_fail(jobs)
            self._batch_s = 0.5 * self._batch_s + 0.5 * (time.monotonic() - started)
        with self._changed:
            for job in self._waiting:
                job.post(Ending())
            self._waiting.clear()

    def _next_jobs(self) -> list[Job]:
        """The job that waits longest and others of its law; none where the work is to end."""
        with self._changed:
            while not self._ending:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                self._changed.wait_for(lambda: len(self._waiting) >= self.batch or self._ending, GATHER_S)
                if self._waiting and not self._ending:
                    alike = (job for job in self._waiting if job.law == self._waiting[0].law)
                    jobs = list(itertools.islice(alike, self.batch))
                    for job in jobs:
                        self._waiting.remove(job)
                    return jobs
            return []

    def _draw_or_fail(self, jobs: Sequence[Job]) -> None:
        """Draw `jobs`; where that fails, each alone, lest one spoil the others."""
        try:
            self._draw(jobs)
        except Ending as error:
            for job in jobs:
                job.post(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next request is served
            left = [job for job in jobs if job.sent < job.keep and not job.has_gone]
            if len(jobs) > 1:
                for job in left:
                    self._draw_or_fail([job])
            elif left:
                logger.warning("an image could not be drawn: %s", " ".join(str(error).split()))
                jobs[0].post(error)

    def _draw(self, jobs: Sequence[Job]) -> None:
        self._tell_drawn(len(jobs))
        stops = sorted({stop for job in jobs for stop in job.stops} | _looks(max(job.keep for job in jobs)))
        requests = [job.request for job in jobs]
        stages = self.prior.generate_in_stages(
            stops,
            jobs[0].law,
            labels=[request.label or 0 for request in requests],
            text=[request.text or "" for request in requests],
            num=len(jobs),
            seed=[request.seed for request in requests],
            sample_ids=[request.id for request in requests],
        )
        drawn, kept_B = list(jobs), None
        for stop in stops:
            ids = stages.send(kept_B)
            if self._ending:
                raise Ending()
            due = [row for row, job in enumerate(drawn) if stop in job.stops and stop > job.sent and not job.has_gone]
            self._give([drawn[row] for row in due], ids[due])
            left = [row for row, job in enumerate(drawn) if stop < job.keep and not job.has_gone]
            if not left:
                break
            kept_B = torch.tensor(left) if len(left) < len(drawn) else None
            drawn = [drawn[row] for row in left]

    def _give(self, jobs: Sequence[Job], ids: Tensor) -> None:
        """Send each of `jobs` its ids, and the pictures of those that want one, decoded together."""
        pictured = [row for row, job in enumerate(jobs) if job.request.format == "png"]
        pngs: dict[int, bytes] = {}
        if pictured:
            requests = [jobs[row].request for row in pictured]
            seeds, streams = [request.seed for request in requests], [request.id for request in requests]
            noise = normal_for(seeds, streams, self.tokenizer.latent_shape)
            pixels = to_uint8(self.tokenizer.detokenize(ids[pictured], noise=noise))
            pngs = {row: to_png(picture) for row, picture in zip(pictured, pixels, strict=True)}
        for row, (job, own) in enumerate(zip(jobs, ids.tolist(), strict=True)):
            job.sent = len(own)
            job.post(Drawn(len(own), own, pngs.get(row), is_last=len(own) == job.keep))


def _stops(keep: int, previews: bool) -> set[int]:
    """Where an image is given away: at the end, and at 1, 2, 4, ... where previews are wanted."""
    return {keep, *(1 << power for power in range(keep.bit_length() if previews else 0) if 1 << power < keep)}


def _looks(keep: int) -> set[int]:
    return set(range(LOOK_EVERY, keep, LOOK_EVERY))
