"""Held-out losses while a training goes on."""

import numpy as np
import torch

from flextok.model.rng import SampleRng
from flextok.train.config import TrainConfig
from flextok.train.objective import Objective
from flextok.train.parallel import DistContext

VALIDATION_SEED_OFFSET = 1 << 31  # held-out samples draw from streams of their own


@torch.no_grad()
def held_out_losses(validation: Objective, config: TrainConfig, world: DistContext) -> dict[str, float]:
    """`val/loss`, the mean over the same held-out samples with the same draws each time, and its parts.

    By the weights that the model has now, which is left in evaluation mode; all members call it.
    """
    count = min(len(validation.source), config.validation_samples)
    part = world.part(count)
    total = torch.zeros(1, dtype=torch.float64, device=world.device)
    validation.eval()
    for start in range(part.start, part.stop, config.batch_size):
        places = range(start, min(start + config.batch_size, part.stop))
        batch = validation.source.fetch(np.arange(places.start, places.stop))
        on_device = {name: tensor.to(world.device) for name, tensor in batch.items()}
        total += validation(on_device, SampleRng(config.seed + VALIDATION_SEED_OFFSET, places)).sum()
    parts = validation.loss_parts(world)
    return {
        "val/loss": world.sum(total).item() / count,
        **{f"val/{name}": value for name, value in parts.items()},
        **validation.held_out_numbers(),
    }
