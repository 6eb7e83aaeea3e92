"""Coordinate check of a parametrization: how large outputs of modules are, and how far some steps move them, by width.

By the standard parametrization one learning rate moves wide models further than narrow ones; by muP (see mup.py) as far, so
that it serves them all. Yang et al. (arXiv 2203.03466), appendix D.1.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from flextok.errors import UsageError
from flextok.model.config import TokenizerConfig
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.rng import SampleRng
from flextok.model.text import TextFeatures
from flextok.model.tokenizer import Tokenizer
from flextok.train.config import OptimizerConfig, PriorTrainConfig, TokenizerTrainConfig, TrainConfig
from flextok.train.mup import prior_at, scale_prior, scale_tokenizer
from flextok.train.objective import Batch, Objective
from flextok.train.parallel import DistContext
from flextok.train.schedule import ConstantSchedule
from flextok.train.tokenizer import TokenizerObjective
from flextok.train.trained import Trained

WATCHED = re.compile(r"(^|\.)(blocks\.\d+|head)$")
IMAGES, TEXT_POSITIONS = 16, 4
STEEPEST = 0.3
"""Largest power of the width that passes for none, on a few models a width."""

Begin = Callable[[int, int], tuple[Objective, Batch]]
"""A new objective of a given width and seed, and a batch for it."""


@dataclass(frozen=True)
class Coordinates:
    """The output y of a module at growing widths: mean |y| before the first step, mean |change of y| after the last."""

    module: str
    widths: tuple[int, ...]
    sizes: tuple[float, ...]
    changes: tuple[float, ...]

    @property
    def size_power(self) -> float | None:
        """Power of the width that the size grows by; None where it is zero, as of a head that starts so."""
        return _power(self.widths, self.sizes)

    @property
    def change_power(self) -> float | None:
        """Power of the width that the change grows by."""
        return _power(self.widths, self.changes)

    @property
    def holds(self) -> bool:
        """Whether steps move y as far at all widths, and it does not start larger in wide models.

        An output starts smaller there by muP, by the square root.
        """
        change, size = self.change_power, self.size_power
        return change is not None and abs(change) <= STEEPEST and (size is None or size <= STEEPEST)


def _power(widths: Sequence[int], values: Sequence[float]) -> float | None:
    """The slope of the line through logarithms."""
    if not all(0 < value < np.inf for value in values):
        return None
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


def coordinate_check(
    begin: Begin, optimizer: OptimizerConfig, widths: Sequence[int], steps: int, seeds: int
) -> list[Coordinates]:
    """Coordinates of each block and head, when models of each width are trained on one batch at the full learning rate.

    They are means over `seeds` models. Raises UsageError for fewer than two widths.
    """
    growing = tuple(sorted(set(widths)))
    if len(growing) < 2:
        raise UsageError(f"expected two widths or more to compare, found {', '.join(map(str, growing)) or 'none'}")
    optimizer = optimizer.model_copy(update={"warmup_steps": 0, "schedule": ConstantSchedule()})
    # [widths, modules, 2]: sizes and changes
    moved = [[_moved(*begin(width, seed), optimizer, steps) for seed in range(seeds)] for width in growing]
    means = np.mean([[list(run.values()) for run in runs] for runs in moved], axis=1)
    return [
        Coordinates(module, growing, *(tuple(means[:, index, part].tolist()) for part in (0, 1)))
        for index, module in enumerate(moved[0][0])
    ]


def _moved(
    objective: Objective, batch: Batch, optimizer: OptimizerConfig, steps: int
) -> dict[str, tuple[float, float]]:
    """By module: mean |y| at first, and mean |change of y| after the steps."""
    config = TrainConfig(steps=steps, optimizer=optimizer)
    trained = Trained(objective, config, DistContext())
    rng = SampleRng(config.seed, range(IMAGES))
    before = _outputs(objective, batch, rng)
    objective.train()
    for step in range(steps):
        objective(batch, rng).mean().backward()
        trained.step(step)
    after = _outputs(objective, batch, rng)
    return {name: (y.abs().mean().item(), (after[name] - y).abs().mean().item()) for name, y in before.items()}


@torch.no_grad()
def _outputs(objective: Objective, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keeping(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            # of a decoder's block the patches: registers are read by these alone
            found[name] = (output[0] if isinstance(output, tuple) else output).float()

        return keep

    watched = [(name, module) for name, module in objective.model.named_modules() if WATCHED.search(name)]
    hooks = [module.register_forward_hook(keeping(name)) for name, module in watched]
    objective.eval()
    objective(batch, rng)
    for hook in hooks:
        hook.remove()
    return found


class _NoSamples:
    """Batches are given."""

    in_memory = True
    weights = windows = None

    def __len__(self) -> int:
        return 0

    def fetch(self, indices: np.ndarray) -> Batch:
        raise NotImplementedError


def tokenizers(config: TokenizerConfig, train: TokenizerTrainConfig) -> Begin:
    """Tokenizers of `config` at other widths, on random latents; without the alignment to a teacher."""
    weights = {name: weight for name, weight in train.loss_weights.items() if name != "alignment"}
    decoder = train.decoder
    if hasattr(decoder, "alignment"):
        decoder = decoder.model_copy(update={"alignment": None})
    train = train.model_copy(update={"decoder": decoder, "loss_weights": weights})

    def begin(width: int, seed: int) -> tuple[Objective, Batch]:
        own = train.model_copy(update={"seed": seed})
        tokenizer = Tokenizer.create(config.with_width(width), seed)
        lr_factors = scale_tokenizer(tokenizer, own)
        objective = TokenizerObjective(tokenizer, _NoSamples(), own, lr_factors=lr_factors)
        latents = torch.randn(IMAGES, *tokenizer.latent_shape, generator=torch.Generator().manual_seed(seed))
        return objective, {"latents": latents}

    return begin


def priors(config: PriorConfig, train: PriorTrainConfig) -> Begin:
    """Priors of `config` at other widths, on random ids and conditions."""

    def begin(width: int, seed: int) -> tuple[Objective, Batch]:
        prior = Prior.create(prior_at(config, width), seed)
        lr_factors = scale_prior(prior, train.model_copy(update={"seed": seed}))
        objective = _OnIds(prior, _NoSamples(), lr_factors)
        generator = torch.Generator().manual_seed(seed)
        shape = (IMAGES, config.num_tokens, *((config.codebooks,) if config.codebooks > 1 else ()))
        batch = {"ids": torch.randint(config.vocab_size, shape, generator=generator)}
        if config.condition == "class":
            batch["labels"] = torch.randint(config.num_classes, (IMAGES,), generator=generator)
        if config.condition == "text":
            batch["text"] = torch.randn(IMAGES, TEXT_POSITIONS, config.model.context_width, generator=generator)
        return objective, batch

    return begin


class _OnIds(Objective):
    """A prior's first loss, of ids and conditions that are given."""

    def forward(self, batch: Batch, rng: SampleRng) -> Tensor:
        text = batch.get("text")
        context = None if text is None else TextFeatures(text, torch.ones(text.shape[:2], dtype=torch.bool))
        prior = cast(Prior, self.model)
        return next(iter(prior.training_step(batch["ids"], batch.get("labels"), context, None, rng).values()))
