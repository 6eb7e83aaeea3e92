"""Named losses: their weighted sum, and the mean of each for the history."""

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor

from flextok.errors import UsageError
from flextok.train.parallel import DistContext


class NamedLosses:
    """Adds up the losses of an objective by `weights` (1 for a name that has none) and remembers each."""

    def __init__(self, weights: Mapping[str, float]):
        self._weights = weights
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def total(self, losses: Mapping[str, Tensor], counted: bool, complete: bool = True) -> Tensor:
        """The weighted sum [B] of `losses`, each [B]; with `counted` they enter the next means.

        Raises UsageError where there is a weight for a loss that does not exist, if `losses` are `complete`.
        """
        for name in self._weights.keys() - losses.keys() if complete else ():
            near = difflib.get_close_matches(name, losses, n=1, cutoff=0.0)
            raise UsageError(
                f"expected train.loss_weights of the losses {', '.join(sorted(losses))}, found '{name}'; "
                f"the nearest is '{near[0]}'"
            )
        weighted = [loss * self._weights[name] if name in self._weights else loss for name, loss in losses.items()]
        if counted and len(losses) > 1:
            for name, loss in losses.items():
                self.count(name, loss)
        total = weighted[0]
        for loss in weighted[1:]:
            total = total + loss
        return total

    def count(self, name: str, loss_B: Tensor) -> None:
        """Have a loss enter the next means."""
        # What is not finite ends the run, or its step is left out: then the means have nothing of it.
        self._sums[name] = self._sums.get(name, 0) + loss_B.detach().double().nan_to_num(0, 0, 0).sum()
        self._counts[name] = self._counts.get(name, 0) + len(loss_B)

    def means(self, world: DistContext) -> dict[str, float]:
        """`train/loss/<name>` without its weight, the mean since the last call over all members of `world`: of the steps that
        had it.

        Empty where there is one loss only, which the history has as `train/loss`.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        device = self._sums[names[0]].device
        counts = torch.tensor([self._counts[name] for name in names], dtype=torch.float64, device=device)
        found = world.sum(torch.stack([torch.stack([self._sums[name] for name in names]), counts])).T.tolist()
        self._sums, self._counts = {}, {}
        return {f"train/loss/{name}": total / count for name, (total, count) in zip(names, found, strict=True)}
