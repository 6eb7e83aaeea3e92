"""A look at one step of the optimizer by module: how large its gradients are, and how far it moves the weights."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from flextok.train.sharding import whole

Parameters = Mapping[str, nn.Parameter]


class Probe:
    """Gradient norms and update-to-weight ratios of the step that it is shown.

    While the step is taken it holds a copy of the weights. Nothing here waits for the device until `values` is asked.
    """

    def __init__(self) -> None:
        self._gradients: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._ratios: dict[str, Tensor] = {}  # none of a step that is left out

    @torch.no_grad()
    def before(self, named: Parameters) -> None:
        """The parameters with their gradients, as they are before these are clipped; all members call it."""
        trained = {name: parameter for name, parameter in named.items() if parameter.grad is not None}
        self._gradients = norms_by_module({name: p.grad for name, p in trained.items() if p.grad is not None})
        self._weights = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def after(self, named: Parameters) -> None:
        """The same parameters after the step; all members call it."""
        weights = norms_by_module(self._weights)
        changes = norms_by_module({name: named[name].detach() - before for name, before in self._weights.items()})
        self._ratios = {
            module: (changes[module] / norm).where(norm > 0, 0.0)  # weights that begin as zeros have no ratio yet
            for module, norm in weights.items()
        }
        self._weights = {}

    def values(self) -> dict[str, float]:
        """`grad_norm/<module>`, and `update_ratio/<module>`: the norm of the change by that of the weights before it.

        0 for weights that were all zero. About 1e-3 is usual at full learning rate; 1e-5 hardly learns, 1e-1 is not far from divergence.
        """
        parts = {"grad_norm": self._gradients, "update_ratio": self._ratios}
        return {f"{kind}/{module}": norm.item() for kind, part in parts.items() for module, norm in part.items()}


def norms_by_module(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The norm of all tensors of a module together, by `module_of`."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(module_of(name), []).append(tensor)
    return {module: _norm(group) for module, group in groups.items()}


def module_of(name: str) -> str:
    """The part of a model that a parameter is counted to: two names deep, all blocks of a trunk as one."""
    *owners, _ = name.split(".")
    return ".".join([part for part in owners if not part.isdigit()][:2]) or "root"


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    return whole(nn.utils.get_total_norm(tensors, foreach=True))
