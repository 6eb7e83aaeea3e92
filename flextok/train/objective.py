"""What a training is given: samples by index, and a model with the loss that makes it fit them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from flextok.model.rng import SampleRng
from flextok.train.companion import Companion
from flextok.train.optimizer import ALIKE
from flextok.train.parallel import DistContext
from flextok.train.sample_order import Weights, Windows

Batch = dict[str, Tensor]


class Source(Protocol):
    """Training samples by index."""

    in_memory: bool

    @property
    def weights(self) -> Weights | None:
        """How often each sample is drawn, mean 1; None: all alike."""
        ...

    @property
    def windows(self) -> Windows | None:
        """The blocks in which samples are read, where they are more than memory holds; None: each is as near as any."""
        ...

    def __len__(self) -> int: ...

    def fetch(self, indices: np.ndarray) -> Batch:
        """The samples at `indices`, stacked, on the CPU. May be called from another thread."""
        ...


class Pictures(Protocol):
    """Pictures that a training draws now and then."""

    every: int
    """Steps between them."""

    def drawn(self) -> np.ndarray:
        """One picture, uint8 [H,W,3], by the weights that the model has now, which is left in evaluation mode."""
        ...


class Objective(nn.Module):
    """A model and the samples it is trained on; `forward(batch, rng)` gives the loss of each sample, [B]."""

    def __init__(self, model: nn.Module, source: Source, lr_factors: Mapping[str, float] = ALIKE):
        super().__init__()
        self.model = model
        self.source = source
        self.lr_factors = lr_factors
        """What the learning rate is multiplied by for trained parameters by name, 1 where none is given."""
        self.companion: Companion | None = None
        """A network in it that is trained beside the model."""
        self.pictures: Pictures | None = None
        """What is to be drawn of held-out samples now and then."""
        self.further_averages: dict[float, dict[str, Tensor]] = {}
        """Of a finished training, in its first member: averaged weights by each of `further_ema_decays`."""

    def fetch(self, indices: np.ndarray, rng: SampleRng) -> Batch:
        """The samples at `indices` for a step of the training, as `Source.fetch`; what is drawn of them comes from `rng`."""
        return self.source.fetch(indices)

    def prepare(self, slices: Sequence[tuple[Batch, SampleRng]]) -> None:
        """Look at all that this member has of a step's batch, before `forward` gets one slice of it after the other."""

    def interval_metrics(self, world: DistContext) -> dict[str, float]:
        """What else belongs in the history since the last call; called by all members alike."""
        return {}

    def loss_parts(self, world: DistContext) -> dict[str, float]:
        """Mean losses of groups of samples since the last call, by name; called by all members alike."""
        return {}

    def held_out_numbers(self) -> dict[str, float]:
        """What else a validation is to record, by the weights that the model has now; called by all members alike."""
        return {}

    def flops(self) -> float | None:
        """Operations of the matrix products of a forward pass for a sample, in all that is trained; None if not known."""
        return None

    def turns(self) -> set[int]:
        """Steps from which the loss is another one by design: what was before says nothing of what is too large there."""
        return set()

    def frozen(self, step: int) -> set[str]:
        """Names of trained parameters and learned buffers that stay as they are from `step` on; the same ones ever after."""
        return set()

    def freeze(self, world: DistContext) -> None:
        """What can be computed once and for all now that those are frozen; called by all members alike."""

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimizer changes, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}
