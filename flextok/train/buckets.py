"""The loss by group of samples, as by noise level and by tokens kept: sums on the device, read at rows of the history."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flextok.train.parallel import DistContext

NOISE_BUCKETS = 5
NOISE_NAMES = [*(f"{n / NOISE_BUCKETS:.1f}-{(n + 1) / NOISE_BUCKETS:.1f}" for n in range(NOISE_BUCKETS)), "1.0"]


class BucketMeans:
    """The mean loss of the samples in each bucket since it was asked last, without a wait for the device in between."""

    def __init__(self, names: Sequence[str], device: torch.device):
        self._names = names
        self._sums = torch.zeros(2, len(names), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, bucket_B: Tensor, loss_B: Tensor) -> None:
        """Samples by their bucket, int64, and their loss."""
        losses = loss_B.detach().double()
        counted = losses.isfinite()  # the others end the run, or their step is left out
        self._sums.index_add_(1, bucket_B, torch.stack([losses.where(counted, 0), counted.double()]))

    def means(self, world: DistContext) -> dict[str, float]:
        """Over all members of `world`, of buckets that had samples; all members call it."""
        sums, counts = world.sum(self._sums).tolist()
        self._sums.zero_()
        return {name: total / count for name, total, count in zip(self._names, sums, counts, strict=True) if count}


class LossParts:
    """A decoder's loss by the noise level of a sample, and by how many of its `registers` it was decoded from."""

    def __init__(self, registers: int, device: torch.device):
        self._ends = torch.tensor(keep_ends(registers), device=device)
        starts = [0, *(int(end) + 1 for end in self._ends[:-1].tolist())]
        names = [
            str(end) if start == end else f"{start}-{end}"
            for start, end in zip(starts, self._ends.tolist(), strict=True)
        ]
        self._by_keep, self._by_noise = BucketMeans(names, device), BucketMeans(NOISE_NAMES, device)

    def add(self, loss_B: Tensor, keep_B: Tensor, drop_B: Tensor, t_B: Tensor | None) -> None:
        """Losses of samples decoded from keep_B tokens, or none where drop_B, at noise levels t_B in [0,1], if there are any."""
        self._by_keep.add(torch.bucketize(keep_B.masked_fill(drop_B, 0), self._ends), loss_B)
        if t_B is not None:
            self._by_noise.add((t_B * NOISE_BUCKETS).long().clamp(0, NOISE_BUCKETS).to(loss_B.device), loss_B)

    def means(self, world: DistContext) -> dict[str, float]:
        """`loss_by_keep/<tokens>` (0: decoded without any) and `loss_by_noise/<levels>` (1.0: noise alone)."""
        parts = {"loss_by_keep": self._by_keep, "loss_by_noise": self._by_noise}
        return {f"{kind}/{name}": value for kind, part in parts.items() for name, value in part.means(world).items()}


def keep_ends(registers: int) -> list[int]:
    """The largest K of each bucket: 0, then powers of two up to `registers`, which ends the last."""
    ends, end = [0], 1
    while end < registers:
        ends.append(end)
        end *= 2
    return [*ends, registers]
