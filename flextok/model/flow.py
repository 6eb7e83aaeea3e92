"""Rectified flow: noising, guidance, and the Euler sampler. t = 1 is noise, t = 0 is data."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Guidance = float | Callable[[float], float]

APG_MOMENTUM = -0.5
APG_MAX_NORM = 2.5


def sample_sigma(kind: str, u: Tensor, mode_scale: float = 0.0) -> Tensor:
    """Noise levels in [0,1] from uniform draws `u` in [0,1).

    `logit_normal`: sigmoid of a standard normal; `uniform`: u, or with mode_scale s != 0 the mode-weighted
    1 - u - s*(cos^2(pi*u/2) - 1 + u) (Esser et al. 2024).
    """
    if kind == "logit_normal":
        tiny = torch.finfo(u.dtype).tiny
        return torch.sigmoid(torch.special.ndtri(u.clamp(min=tiny)))
    if mode_scale == 0.0:
        return u
    return 1 - u - mode_scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)


def add_noise(z_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """The point at time t on the straight line from data (0) to noise (1)."""
    t = t_B.view(-1, 1, 1, 1)
    return t * noise_BCHW + (1 - t) * z_BCHW


def velocity_target(z_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """What the decoder predicts at every t: noise - data."""
    return noise_BCHW - z_BCHW


class NormGuidance:
    """Adaptive projected guidance (Sadat et al. 2024) of one sampling run, per image over (C,H,W).

    The difference of the two predictions gets momentum over the steps, is clipped in norm, and loses its part along
    the conditional prediction; the order of the three matters.
    """

    def __init__(self, momentum: float = APG_MOMENTUM, max_norm: float = APG_MAX_NORM):
        self.momentum = momentum
        self.max_norm = max_norm
        self._running: Tensor | None = None

    def __call__(self, cond_BCHW: Tensor, uncond_BCHW: Tensor, scale: float) -> Tensor:
        """The guided velocity of the next step."""
        difference = cond_BCHW - uncond_BCHW
        if self._running is not None:
            difference = difference + self.momentum * self._running
        self._running = difference
        norm = difference.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        difference = difference * (self.max_norm / norm.clamp(min=1e-30)).clamp(max=1.0)
        return cond_BCHW + (scale - 1) * _orthogonal(difference, cond_BCHW)


def _orthogonal(x_BCHW: Tensor, along_BCHW: Tensor) -> Tensor:
    """x without its part along a direction, per image, in double since the two nearly cancel."""
    x = x_BCHW.double().flatten(1)
    direction = torch.nn.functional.normalize(along_BCHW.double().flatten(1), dim=1)
    rest = x - (x * direction).sum(dim=1, keepdim=True) * direction
    return rest.view_as(x_BCHW).to(x_BCHW.dtype)


def plain_guidance(cond_BCHW: Tensor, uncond_BCHW: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022)."""
    return uncond_BCHW + scale * (cond_BCHW - uncond_BCHW)


def timesteps(steps: int) -> list[float]:
    """t at the start of each Euler step: 1, ..., 1/steps."""
    return [index / steps for index in range(steps, 0, -1)]


def euler_sample(velocity: Callable[[Tensor, int], Tensor], noise_BCHW: Tensor, steps: int) -> Tensor:
    """Latents after `steps` equal Euler steps from t = 1 to 0; `velocity(x, i)` is asked at timesteps(steps)[i]."""
    *_, last = euler_path(velocity, noise_BCHW, steps)
    return last


def euler_path(velocity: Callable[[Tensor, int], Tensor], noise_BCHW: Tensor, steps: int) -> Iterator[Tensor]:
    """The `steps` + 1 points that `euler_sample` passes, noise first."""
    x = noise_BCHW
    yield x
    for index in range(steps):
        x = x - velocity(x, index) / steps
        yield x
