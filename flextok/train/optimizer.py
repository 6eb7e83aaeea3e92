"""Optimizers of the training loop: AdamW, or Muon for the matrices of transformer blocks and AdamW for the rest."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from flextok.model.nn.precision import cpu_has_bfloat16
from flextok.train.config import OptimizerConfig
from flextok.train.sharding import is_sharded, local, sharded_like, whole

Parameters = dict[str, nn.Parameter]
ALIKE: Mapping[str, float] = MappingProxyType({})


class Optimizer:
    """torch's optimizers under one learning rate, with the state that a killed run needs by name.

    `lr_factors` are what that is multiplied by for parameters by name, 1 where none is given (see mup.py).
    """

    def __init__(self, named: Parameters, config: OptimizerConfig, lr_factors: Mapping[str, float] = ALIKE):
        hidden = {name: p for name, p in named.items() if is_muons(name, p, config)}
        others = {name: p for name, p in named.items() if name not in hidden}
        self._optimizers: list[torch.optim.Optimizer] = []
        if hidden:
            self._optimizers.append(_muon(_groups(hidden, config, lr_factors), config))
        if others:
            self._optimizers.append(_adamw(_groups(others, config, lr_factors), config))

    def step(self, lr: float) -> None:
        """Change the parameters by their gradients at learning rate `lr`, and drop the gradients."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Moments and step counts, `<kind>.<parameter of model>`, as they lie in memory."""
        # Takes a second, which a process that only plans a training has no need of.
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        found = get_optimizer_state_dict(model, self._optimizers)["state"]
        by_parameter = cast(dict[str, dict[str, Tensor]], found)
        return {f"{kind}.{name}": tensor for name, kinds in by_parameter.items() for kind, tensor in kinds.items()}

    def begin_at(self, model: nn.Module, steps_done: int) -> None:
        """Zero moments and step counts as after `steps_done` steps, for a resumed run to fill."""
        for name, tensor in self.state(model).items():  # torch makes the state where there is none yet
            local(tensor).fill_(steps_done if name.startswith("step.") else 0)


def is_muons(name: str, parameter: Tensor, config: OptimizerConfig) -> bool:
    """Whether a parameter is changed by Muon, not by AdamW."""
    return config.kind == "muon" and is_hidden_matrix(name, parameter)


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon is meant for a parameter: a matrix of a transformer block that reads and writes token features."""
    return parameter.ndim == 2 and ".blocks." in f".{name}" and ".adaln." not in name


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear from 0 over the warm-up, then as the schedule says."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    return config.lr * config.schedule.share(step, config.warmup_steps, steps, config.final_lr_fraction)


def _groups(named: Parameters, config: OptimizerConfig, lr_factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters that are changed alike; what decays by a step does so at any factor on its learning rate."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        groups.setdefault((lr_factors.get(name, 1.0), parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": alike, "lr_factor": factor, "weight_decay": config.weight_decay / factor if decays else 0.0}
        for (factor, decays), alike in groups.items()
    ]


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def _muon(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Muon:
    # torch's iterates in bfloat16, which CPUs that cannot multiply it take fifty times as long for.
    first = groups[0]["params"][0]
    emulated = first.device.type == "cpu" and not cpu_has_bfloat16()
    kind = Float32Muon if emulated else ShardedMuon if is_sharded(first) else torch.optim.Muon
    # Steps as large as AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"): one learning rate serves both.
    return kind(groups, lr=config.lr, momentum=0.95, adjust_lr_fn="match_rms_adamw")


class ShardedMuon(torch.optim.Muon):
    """torch.optim.Muon with Nesterov momentum and steps as large as AdamW's, also for matrices that lie in shards.

    The iteration needs a whole matrix: each process gathers one after the other, and keeps its rows of the result.
    """

    iterates_in = torch.bfloat16  # as torch's does

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step by the gradients that are there."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
                direction = whole(matrix.grad.lerp(mean, momentum)).to(self.iterates_in)
                update = sharded_like(_orthogonal(direction, group).to(matrix.dtype), matrix)
                matrix.mul_(1 - lr * group["weight_decay"])
                matrix.add_(update, alpha=-lr * 0.2 * math.sqrt(max(matrix.shape)))


class Float32Muon(ShardedMuon):
    """The same with its iteration in float32."""

    iterates_in = torch.float32


def _orthogonal(gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """Near the orthogonal matrix closest to `gradient`: the quintic Newton-Schulz iteration of torch.optim.Muon."""
    a, b, c = group["ns_coefficients"]
    wide = gradient.T if gradient.size(0) > gradient.size(1) else gradient
    x = wide / wide.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if gradient.size(0) > gradient.size(1) else x
