"""Buffers that a model learns beside its parameters, as the running means of an EMA codebook."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flextok.model.nn.collective import SlicedSums
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

    A forward pass changes them by the samples it sees: a slice of the member's part of the batch. `synchronise` then
    makes each change the mean of the changes by all slices of all members, weighted by their samples: what one process
    would have done with the whole batch at once, where buffers are changed by means over samples (counts as shares of the
    batch, sums divided by it). Where a model calls `summed`, which has the sums over the whole batch in the last slice, that
    slice's changes are all: with several slices, all buffers of such a model must come of sums. A buffer that no member
    changed keeps its bits. Those that hold no floating-point numbers are the first member's.
    """

    def __init__(self, model: nn.Module, world: DistContext, slices: int = 1, can_undo: bool = False):
        self._model, self._world = model, world
        self._names = learned_buffers(model)
        self._is_sliced = slices > 1
        is_kept = world.size > 1 or slices > 1 or can_undo
        self._before = {name: tensor.clone() for name, tensor in self.named().items()} if is_kept else {}
        self._begin()

    def named(self) -> dict[str, Tensor]:
        """The buffers by name, as they lie in memory now (a module may put another tensor in the place of one)."""
        return {name: self._model.get_buffer(name).detach() for name in self._names}

    def averaged(self) -> dict[str, Tensor]:
        """Those of which a mean over steps makes sense."""
        return {name: tensor for name, tensor in self.named().items() if tensor.is_floating_point()}

    @contextlib.contextmanager
    def slice(self, share: float, is_last: bool) -> Iterator[None]:
        """Around the forward pass of the next slice, which has `share` of the step's samples."""
        self._restore()
        with self._sums.slice(is_last) if self._is_sliced else contextlib.nullcontext():
            yield
        self._share += share
        for name, before in self._before.items():
            buffer = self._model.get_buffer(name)
            if not buffer.is_floating_point():
                continue
            if self._sums.is_used:  # each slice has the sums of those before it: the last one's change is the whole
                self._changes[name] = (buffer.detach() - before) * self._share
            else:
                change = (buffer.detach() - before) * share
                self._changes[name] = self._changes[name] + change if name in self._changes else change

    @torch.no_grad()
    def synchronise(self) -> None:
        """After the slices of a step: the same values on all members."""
        for name, before in self._before.items():
            buffer = self._model.get_buffer(name)
            if buffer.is_floating_point():
                buffer.copy_(before + self._world.sum(self._changes[name]))
            else:
                self._world.from_first(buffer)
            before.copy_(buffer)
        self._begin()

    @torch.no_grad()
    def undo(self) -> None:
        """After the slices of a step that is left out: the values before it."""
        self._restore()
        self._begin()

    @torch.no_grad()
    def accept(self) -> None:
        """Take the present values as those that the next step changes (after a resume)."""
        for name, before in self._before.items():
            before.copy_(self._model.get_buffer(name))

    def _begin(self) -> None:
        self._changes: dict[str, Tensor] = {}
        self._share = 0.0
        self._sums = SlicedSums()

    @torch.no_grad()
    def _restore(self) -> None:
        """What the slices before this one changed, back to the values before the step."""
        if self._share > 0:
            for name, before in self._before.items():
                self._model.get_buffer(name).copy_(before)
