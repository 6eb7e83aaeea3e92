"""What a person should look at while a training goes on: told in one line with what to do, and recorded in its history.

Each alarm is a function of the history, asked after a row. It is told when it begins, and again when it comes back.
What is compared with earlier rows is so with those since the loss last became another one by design.
"""

import logging
import math
import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass

from flextok.train.history import History

logger = logging.getLogger(__name__)

WINDOW, FEWEST = 20, 8
"""Rows that a value is compared with; with fewer than FEWEST before it there is no alarm."""
DEVIATIONS = 5
LARGEST_FALL = 5.0
SAME_TOKENS, SAME_ROWS = 1.5, 3
WAITING_SHARE, WAITING_S = 0.5, 10.0


@dataclass(frozen=True)
class Look:
    """What an alarm is asked about: a history after its last row."""

    history: History
    seconds: float
    """Since the row before."""
    turned: int
    """Steps after which the loss became another one by design, the last time; 0 where it never has."""


Alarm = Callable[[Look], str | None]


class Alarms:
    """Those of one training, whose loss changes by design after `turns` steps; only its first member tells them."""

    def __init__(self, history: History, turns: Collection[int], tells: bool):
        self._history, self._turns, self._tells = history, turns, tells
        self._on: set[str] = set()

    def look(self, step: int, seconds: float) -> None:
        """After the row of `step`, `seconds` after the one before."""
        turned = max((turn for turn in self._turns if turn < step), default=0)
        look = Look(self._history, seconds, turned)
        for name, alarm in ALARMS.items():
            line = alarm(look)
            if line is not None and name not in self._on:
                self.tell(step, name, line)
            (self._on.add if line is not None else self._on.discard)(name)

    def tell(self, step: int, name: str, line: str, value: float = 1.0) -> None:
        """Record `alarm/<name>`, and say why."""
        self._history.add(step, {f"alarm/{name}": value})
        if self._tells:
            logger.warning("step %s: %s", f"{step:,}", line)

    def tell_skipped(self, step: int, norm: float) -> None:
        """That a step was left out for its gradient norm, which is recorded, -1 for one that is not finite."""
        is_finite = math.isfinite(norm)
        found = (
            f"its gradient norm is {norm:.4g}, far above those before" if is_finite else "its gradient is not finite"
        )
        line = f"this step was left out: {found}; if there are many, lower train.optimizer.lr"
        self.tell(step, "skipped_step", line, norm if is_finite else -1.0)


def loss_spike(look: Look) -> str | None:
    """The mean loss since the last row is far above those before."""
    return _spike(look, "train/loss", 1.2)


def gradient_spike(look: Look) -> str | None:
    """The mean gradient norm since the last row is far above those before."""
    return _spike(look, "train/grad_norm", 3.0)


def codebook_collapse(look: Look) -> str | None:
    """Far fewer ids are in use than there were, or for some rows all images have had the same."""
    found = look.history.values("train/codebook_perplexity")
    remedy = "lower train.optimizer.lr, warm up longer, or give train.decoder.pure_noise_steps"
    if found and found[-1] * LARGEST_FALL < max(found):
        return f"the codebook collapses: its perplexity fell from {max(found):.4g} to {found[-1]:.4g}; {remedy}"
    if len(found) >= SAME_ROWS and max(found[-SAME_ROWS:]) < SAME_TOKENS:
        return f"the codebook is not in use: its perplexity is {found[-1]:.4g} of at least 1; {remedy}"
    return None


def data_stalled(look: Look) -> str | None:
    """More time went by waiting for samples than with them."""
    (share,) = look.history.values("machine/data_wait", most=1) or [0.0]
    if share < WAITING_SHARE or share * look.seconds < WAITING_S:
        return None
    return (
        f"{share:.0%} of {look.seconds:.0f} s went by waiting for data; give each worker more CPUs to decode with, a nearer "
        "store, or smaller pictures (corpus.resize_short_side)"
    )


ALARMS: dict[str, Alarm] = {
    alarm.__name__: alarm for alarm in (loss_spike, gradient_spike, codebook_collapse, data_stalled)
}


def _spike(look: Look, name: str, factor: float) -> str | None:
    *before, last = look.history.values(name, most=WINDOW + 1, after=look.turned) or [0.0]
    if len(before) < FEWEST:
        return None
    median = statistics.median(before)
    deviation = statistics.median(abs(value - median) for value in before)
    if last <= max(median + DEVIATIONS * deviation, factor * median):
        return None
    return (
        f"{name} is {last:.4g}, {median:.4g} in the middle of the rows before; if it does not come back, lower "
        "train.optimizer.lr or set train.skip_spikes"
    )
