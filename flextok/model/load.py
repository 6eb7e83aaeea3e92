"""Models from checkpoints."""

import torch

from flextok.config import parse_config
from flextok.model.checkpoint import read_kind
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.weights import load_state

# Settings of the training alone, which earlier checkpoints hold among those of the model. Their digest covers them still.
FORMER_PRIOR_KEYS = ("dropout", "condition_dropout")


def load_prior(path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Prior:
    """The prior stored at `path`, in evaluation mode; raises UsageError when something else is stored there."""
    checkpoint = read_kind(str(path), "prior")
    values = {name: value for name, value in checkpoint.config.items() if name not in FORMER_PRIOR_KEYS}
    prior = Prior.create(parse_config(PriorConfig, values, f"{path}/config.yaml"), seed=0)
    load_state(prior, checkpoint.state, checkpoint.url)
    prior.digest = checkpoint.digest
    return prior.to(device, dtype).eval()
