"""A small real objective for tests of the loop: a linear map fitted to noisy samples of another."""

import os
import signal
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from flextok.config import Config
from flextok.errors import FlextokError
from flextok.model.checkpoint import SavedCheckpoint, save_checkpoint
from flextok.model.rng import SampleRng
from flextok.train.config import TrainConfig
from flextok.train.job import fingerprint_of
from flextok.train.objective import Batch, Objective
from flextok.train.parallel import DistContext


class ToyConfig(Config):
    """How large, and at which place of the run something goes wrong."""

    samples: int = 30
    poison_at: int | None = None
    spike_at: int | None = None
    fail_at: int | None = None
    kill_at: int | None = None
    kill_mark: str = ""  # a file that is there once the kill has happened
    hold_at: int | None = None  # says so on stdout, and goes on when stdin ends


class ToySource:
    """x and y = A x for `samples` fixed x."""

    weights: np.ndarray | None = None
    windows = None

    def __init__(self, config: ToyConfig, in_memory: bool = True):
        self.config, self.in_memory = config, in_memory
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(config.samples, 8, generator=generator)
        self.y = self.x @ torch.randn(8, 4, generator=generator)

    def __len__(self) -> int:
        return self.config.samples

    def fetch(self, indices: np.ndarray) -> Batch:
        return {"x": self.x[indices], "y": self.y[indices]}


class ToyObjective(Objective):
    """Squared error, with noise drawn for each sample."""

    def __init__(self, model: nn.Module, source: ToySource):
        super().__init__(model, source)
        self.config = source.config

    def forward(self, batch: Batch, rng: SampleRng) -> Tensor:
        noise = 0.1 * rng.normal("noise", (8,))
        losses = (self.model(batch["x"] + noise) - batch["y"]).square().mean(dim=1)
        if self.config.poison_at in rng.places and self.training:
            return losses * float("nan")
        if self.config.spike_at in rng.places and self.training:
            return losses * 1e4
        if self.config.kill_at in rng.places and not os.path.exists(self.config.kill_mark):
            open(self.config.kill_mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.config.hold_at in rng.places:
            print("holding", flush=True)
            sys.stdin.read()
        if self.config.fail_at in rng.places and self.training:
            raise FlextokError(f"expected no place {self.config.fail_at}, found it")
        return losses


def make_objective(config: ToyConfig | None = None, in_memory: bool = True) -> ToyObjective:
    torch.manual_seed(0)
    layers = {"blocks": nn.Sequential(nn.Linear(8, 16), nn.Tanh()), "head": nn.Linear(16, 4)}
    model = nn.Sequential(OrderedDict(layers))
    return ToyObjective(model, ToySource(config or ToyConfig(), in_memory))


class ToyJob:
    """The toy as a job for `run_training`."""

    label = "toy"

    def __init__(self, train_config: TrainConfig, parent_url: str, config: ToyConfig | None = None):
        self.train_config, self.parent_url, self.config = train_config, parent_url, config or ToyConfig()

    def fingerprint(self) -> str:
        return fingerprint_of(self.label, self.train_config.model_dump(mode="json"), [])

    def build(self, world: DistContext) -> tuple[Objective, Objective | None]:
        return make_objective(self.config), None

    def save(self, objective: Objective, history: pa.Table) -> SavedCheckpoint:
        recipe: dict[str, Any] = {}
        state = objective.model.state_dict()
        return save_checkpoint(self.parent_url, "prior", state, ToyConfig(), [], recipe, history)
