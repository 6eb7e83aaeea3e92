"""What a training changes: parameters, learned buffers, the average of both, and the optimizer's moments."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from flextok.train.buffers import LearnedBuffers
from flextok.train.config import TrainConfig
from flextok.train.objective import Objective
from flextok.train.optimizer import Optimizer, learning_rate
from flextok.train.parallel import DistContext
from flextok.train.probe import Probe
from flextok.train.saver import StateSaver
from flextok.train.sharding import is_sharded, local, make_whole, whole
from flextok.train.spikes import SpikeGuard
from flextok.train.state import SavedState


class Trained:
    """The tensors of a training on one member of a group, whole or in shards."""

    def __init__(self, objective: Objective, config: TrainConfig, world: DistContext):
        model, named = objective.model, objective.trained()
        self._model, self._named, self._config, self._world = model, named, config, world
        self._guard = SpikeGuard(config.skip_spikes, world.device) if config.skip_spikes is not None else None
        self.buffers = LearnedBuffers(model, world, config.gradient_accumulation_steps, self._guard is not None)
        self._average, *self._further = (
            {name: tensor.detach().clone() for name, tensor in self._weights().items()}
            for _ in (config.ema_decay, *config.further_ema_decays)
        )
        # Averaged weights of the best validation, where those are to be published.
        self._best = {name: tensor.clone() for name, tensor in self._average.items()} if config.keep_best else {}
        self._optimizer = Optimizer(named, config.optimizer, objective.lr_factors)
        self._companion = objective.companion
        if self._companion is not None:
            self._companion.begin()

    @property
    def is_sharded(self) -> bool:
        """Whether no member has all of it."""
        return any(is_sharded(parameter) for parameter in self._named.values())

    def step(self, step: int, probe: Probe | None = None) -> tuple[Tensor, bool]:
        """Change all of it by the gradients that are there; gives back their norm before it was clipped, and whether the
        step was taken: one that is left out changes nothing.
        """
        config = self._config
        if probe is not None:
            probe.before(self._named)
        norm = _clip(list(self._named.values()), config.optimizer.grad_clip)
        if self._companion is not None:
            norm = torch.where(self._companion.is_sound(), norm, torch.nan)  # its next judgements would spoil the model
        if self._guard is not None and self._guard.refuses(norm):
            self.buffers.undo()
            if self._companion is not None:
                self._companion.drop()
            for parameter in self._named.values():
                parameter.grad = None
            return norm, False
        self.buffers.synchronise()
        self._optimizer.step(learning_rate(config.optimizer, step, config.steps))
        if self._companion is not None:
            self._companion.step(step)
        if probe is not None:
            probe.after(self._named)
        decays = (config.ema_decay, *config.further_ema_decays)
        for decay, average in zip(decays, (self._average, *self._further), strict=True):
            self._add_to(average, decay, step)
        return norm, True

    @torch.no_grad()
    def _add_to(self, average: dict[str, Tensor], decay: float, step: int) -> None:
        averages, weights = ([local(tensor) for tensor in tensors.values()] for tensors in (average, self._weights()))
        # A long average forgets the random start of a short run only with a warm-up.
        get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(averages, weights, step)

    def turn(self) -> None:
        """From here on the loss is another one."""
        if self._guard is not None:
            self._guard.forget()

    @torch.no_grad()
    def freeze(self, names: set[str]) -> None:
        """Leave parameters and learned buffers as their averages are now; no gradient reaches them any more."""
        for name, tensor in self._weights().items():
            if name in names:
                for other in (tensor, *(further[name] for further in self._further)):
                    local(other).copy_(local(self._average[name]))
        for name, parameter in self._named.items():
            if name in names:
                parameter.requires_grad_(False)
        self.buffers.accept()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averaged weights in the block."""
        current = {name: tensor.detach().clone() for name, tensor in self._weights().items()}
        self._set_weights(self._average)
        try:
            yield
        finally:
            self._set_weights(current)

    @torch.no_grad()
    def keep(self) -> None:
        """Take the averaged weights as they are now as the best."""
        for name, tensor in self._best.items():
            local(tensor).copy_(local(self._average[name]))

    def finish(self) -> None:
        """Leave the averaged weights in the model (the best, where these are kept), on the first member all of them; all
        members call it.
        """
        self._set_weights(self._best or self._average)
        make_whole(self._model, self._world)

    def further_averages(self) -> dict[float, dict[str, Tensor]]:
        """The other averaged weights by their decay, whole, on the CPU of the first member; all members call it."""
        found: dict[float, dict[str, Tensor]] = {}
        for decay, average in zip(self._config.further_ema_decays, self._further, strict=True):
            whole_ones = {name: whole(tensor) for name, tensor in average.items()}
            found[decay] = {name: tensor.cpu() for name, tensor in whole_ones.items()} if self._world.is_first else {}
        return found

    def take_over(self, state: SavedState, saver: StateSaver) -> None:
        """Take over a state; all members call it."""
        self._optimizer.begin_at(self._model, state.record.step)
        if self._companion is not None:
            self._companion.begin_at(state.record.step)
        stored = state.record.tensors
        saver.load(state, {name: t for name, t in self.tensors().items() if name in stored or not self._may_lack(name)})
        self.buffers.accept()

    def _weights(self) -> dict[str, Tensor]:
        """What is averaged over the steps, as it lies in memory: parameters and learned buffers."""
        return {**self._named, **self.buffers.averaged()}

    @torch.no_grad()
    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self._weights().items():
            local(tensor).copy_(local(weights[name]))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the training state by name, as it lies in memory: whole, or this member's shard."""
        present = {**self._named, **self.buffers.named()}
        return {
            **{f"model.{name}": tensor.detach() for name, tensor in present.items()},
            **{f"average.{name}": tensor for name, tensor in self._average.items()},
            **{
                f"average_{number}.{name}": tensor
                for number, average in enumerate(self._further, 2)
                for name, tensor in average.items()
            },
            **self._optimizer.state(self._model),
            **{f"best.{name}": tensor for name, tensor in self._best.items()},
            **(self._companion.tensors() if self._companion is not None else {}),
            **({"guard.norms": self._guard.state} if self._guard is not None else {}),
        }

    def _may_lack(self, name: str) -> bool:
        """Whether a state may be without a tensor: those of earlier versions keep no buffers and no step counts, and those of
        other settings no norms.
        """
        kind, _, owner = name.partition(".")
        return kind in ("step", "guard") or owner in self.buffers.named()


def _clip(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """The norm of all gradients together, which are scaled down where it is above `largest`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients, foreach=True))
    nn.utils.clip_grads_with_norm_(parameters, largest, norm, foreach=True)
    return norm
