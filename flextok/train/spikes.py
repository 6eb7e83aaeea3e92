"""Steps that are left out: those whose gradient is not finite, or far larger than those of the steps before."""

import math

import torch
from torch import Tensor

from flextok.errors import FlextokError

WINDOW, FEWEST = 200, 50
"""Steps whose gradient norms one is compared with; with fewer than FEWEST before it only one that is not finite is left out."""
SMALLEST_DEVIATION = 0.05
"""Of the median: norms that hardly differ do not make an outlier of the next one."""
MOST_IN_A_ROW = 10


class SpikeGuard:
    """Judges each step by its gradient norm, which is the same on all members of a training: so is the judgement."""

    def __init__(self, deviations: float, device: torch.device):
        self._deviations = deviations
        # The last norms, NaN where there is none yet; the last number counts the steps left out in a row.
        self.state = torch.full((WINDOW + 1,), math.nan, device=device)
        self.state[-1] = 0

    def forget(self) -> None:
        """What norms were before says nothing of those to come."""
        self.state[:-1].fill_(math.nan)

    @torch.no_grad()
    def refuses(self, norm: Tensor) -> bool:
        """Whether to leave a step with this gradient norm out; waits for the device.

        Norms that stay high are the new level: after MOST_IN_A_ROW refusals the next ones are taken. Raises FlextokError
        after as many that are not finite.
        """
        value, norms = norm.item(), self.state[:-1]
        seen = norms[norms.isfinite()]
        if math.isfinite(value) and (len(seen) < FEWEST or value <= self._limit(seen)):
            norms.copy_(torch.cat([norms[1:], norm.view(1)]))
            self.state[-1] = 0
            return False
        self.state[-1] += 1
        if self.state[-1] >= MOST_IN_A_ROW:
            if not math.isfinite(value):
                raise FlextokError(
                    f"expected a finite gradient, found none in {MOST_IN_A_ROW} steps in a row; lower "
                    "train.optimizer.lr, or take precision float32"
                )
            self.forget()
        return True

    def _limit(self, seen: Tensor) -> float:
        median = seen.median()
        deviation = (seen - median).abs().median()
        return float(median + self._deviations * deviation.clamp(min=SMALLEST_DEVIATION * median.item()))
