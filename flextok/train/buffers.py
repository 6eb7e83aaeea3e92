"""Buffers that a model learns beside its parameters, as the running means of an EMA codebook."""

import torch
from torch import Tensor, nn

from flextok.train.parallel import DistContext


def learned_buffers(model: nn.Module) -> list[str]:
    """Names of the stored buffers of `model`, but for those in parts all of whose parameters are frozen."""
    frozen = []
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            frozen.append(f"{name}." if name else "")
    stored = model.state_dict().keys()
    return [name for name, _ in model.named_buffers() if name in stored and not name.startswith(tuple(frozen))]


class LearnedBuffers:
    """The learned buffers of a model on one member of a group, kept equal on all of them.

    A forward pass changes them by its own part of the batch. `synchronise` then makes each change the mean of all
    members' changes, weighted by their samples: what one process would have done with the whole batch, where a buffer
    is changed by means over samples (counts as shares of the batch, sums divided by it). A buffer that no member
    changed keeps its bits. Those that hold no floating-point numbers are the first member's.
    """

    def __init__(self, model: nn.Module, world: DistContext):
        self._model, self._world = model, world
        self._names = learned_buffers(model)
        self._before = {name: tensor.clone() for name, tensor in self.named().items()} if world.size > 1 else {}

    def named(self) -> dict[str, Tensor]:
        """The buffers by name, as they lie in memory now (a module may put another tensor in the place of one)."""
        return {name: self._model.get_buffer(name).detach() for name in self._names}

    def averaged(self) -> dict[str, Tensor]:
        """Those of which a mean over steps makes sense."""
        return {name: tensor for name, tensor in self.named().items() if tensor.is_floating_point()}

    @torch.no_grad()
    def synchronise(self, share: float) -> None:
        """After a step on `share` of its samples: the same values on all members."""
        for name, before in self._before.items():
            buffer = self._model.get_buffer(name)
            if buffer.is_floating_point():
                change = self._world.sum((buffer - before) * share)
                buffer.copy_(before + change)
            else:
                self._world.from_first(buffer)
            before.copy_(buffer)

    @torch.no_grad()
    def accept(self) -> None:
        """Take the present values as those that the next step changes (after a resume)."""
        for name, before in self._before.items():
            before.copy_(self._model.get_buffer(name))
