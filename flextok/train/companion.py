"""A network that is trained beside a model, as a discriminator: by an optimizer of its own, and not saved in the end."""

from torch import Tensor, nn

from flextok.train.config import OptimizerConfig
from flextok.train.optimizer import Optimizer
from flextok.train.sharding import whole


class Companion:
    """A network whose gradients come with those of the objective that it is part of; it learns from `start_step` on.

    Its learning rate is constant, and there is no average of it. In the training state it is all there.
    """

    def __init__(self, network: nn.Module, config: OptimizerConfig, start_step: int):
        self._network, self._config, self._start_step = network, config, start_step
        self._optimizer: Optimizer | None = None

    def begin(self) -> None:
        """Make its optimizer, once its parameters are what they stay: whole, or in shards."""
        self._optimizer = Optimizer(self._named(), self._config)

    def is_sound(self) -> Tensor:
        """Whether all of its gradients are finite; waits for nothing. All members call it."""
        gradients = [parameter.grad for parameter in self._named().values() if parameter.grad is not None]
        return whole(nn.utils.get_total_norm(gradients, foreach=True)).isfinite()

    def step(self, step: int) -> None:
        """Change it by the gradients that are there."""
        if step >= self._start_step:
            self._own().step(self._config.lr)
        else:
            self.drop()

    def drop(self) -> None:
        """Forget the gradients that are there."""
        for parameter in self._named().values():
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Its part of the training state, as it lies in memory."""
        weights = {f"model.{name}": parameter.detach() for name, parameter in self._named().items()}
        return {f"companion.{name}": t for name, t in {**weights, **self._own().state(self._network)}.items()}

    def begin_at(self, steps_done: int) -> None:
        """Zero moments as after so many steps of the training, for a resumed run to fill."""
        self._own().begin_at(self._network, max(0, steps_done - self._start_step))

    def _named(self) -> dict[str, nn.Parameter]:
        return dict(self._network.named_parameters())

    def _own(self) -> Optimizer:
        assert self._optimizer is not None  # made in `begin`
        return self._optimizer
