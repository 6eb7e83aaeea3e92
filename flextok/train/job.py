"""A training job: what `launch.run_training` runs, in this process or on many machines."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import torch

from flextok import storage
from flextok.config import ConfigT, parse_config
from flextok.digests import digest_of
from flextok.model.checkpoint import SavedCheckpoint
from flextok.provenance import read_provenance
from flextok.runtime.compute import ComputeConfig
from flextok.train.config import TrainConfig
from flextok.train.history import History, headlines, history_table, open_sinks
from flextok.train.loop import OnProgress, train
from flextok.train.machine import DEVICE_HOURS
from flextok.train.objective import Objective
from flextok.train.parallel import DistContext
from flextok.train.selection import best
from flextok.train.sinks.base import HistoryRow, RunInfo
from flextok.train.sinks.files import PictureFilesConfig
from flextok.version import __version__

RUNS = ".runs"
AVERAGES = "averages"
"""Folder in a checkpoint's, with a checkpoint for each of `further_ema_decays`: `averages/<decay>/<digest>/`."""


@dataclass(frozen=True)
class TrainResult:
    """A finished training: where its checkpoint lies, and the last value of each name in its history that is no detail."""

    url: str
    digest: str
    metrics: dict[str, float]


class TrainJob(Protocol):
    """One training job, a dataclass. It travels to the workers, so it holds settings and URLs, never tensors."""

    @property
    def label(self) -> str: ...

    @property
    def parent_url(self) -> str: ...

    @property
    def train_config(self) -> TrainConfig: ...

    def fingerprint(self) -> str:
        """Hash of all that decides the result: a killed run is found again by it."""
        ...

    def build(self, world: DistContext) -> tuple[Objective, Objective | None]:
        """The objective, and one on held-out samples (of the same model) if there are any."""
        ...

    def save(self, objective: Objective, history: pa.Table) -> SavedCheckpoint:
        """Write the trained model's checkpoint under `parent_url`."""
        ...


def run_url(job: TrainJob) -> str:
    """Where the job keeps its training states until its checkpoint is written."""
    return storage.join(job.parent_url, RUNS, job.fingerprint()[:32])


def run_member(
    job: TrainJob, world: DistContext, compute: ComputeConfig, on_progress: OnProgress
) -> TrainResult | None:
    """Train as one member of `world`; the first one writes the checkpoint and gives back the result."""
    objective, validation = job.build(world)
    config = job.train_config
    info = RunInfo(job.label, job.fingerprint(), job.parent_url, config.model_dump(mode="json"))
    chosen = (*config.sinks, *((PictureFilesConfig(),) if objective.pictures is not None else ()))
    with open_sinks(chosen if world.is_first else (), info) as sinks:
        history = train(objective, config, world, run_url(job), validation, on_progress, compute, sinks)
    if not world.is_first:
        return None
    table = history_table(history, facts(config, history, world))
    saved = job.save(objective, table)
    for decay, weights in objective.further_averages.items():
        objective.model.load_state_dict(weights, strict=False)
        beside = storage.join(saved.url, AVERAGES, f"{decay:g}")
        dataclasses.replace(job, parent_url=beside).save(objective, table)  # pyright: ignore[reportArgumentType]
    return TrainResult(saved.url, saved.digest, headlines(history))


def facts(config: TrainConfig, rows: list[HistoryRow], world: DistContext) -> dict[str, Any]:
    """What a finished training took, for the provenance of its checkpoint: `steps` that were done, `step` that is published
    (with the metric that chose it), `skipped_steps` if there are any, `device_hours` of all workers in all attempts, and the
    `workers` and `device` of the last one.
    """
    history = History()
    history.take_over(rows)
    steps = max((step for step, _, _ in rows), default=0)
    found: dict[str, Any] = {"steps": steps, "step": steps}
    if config.keep_best is not None:
        metric = config.keep_best.metric
        step, value = best(history, metric)
        found |= {"step": step, "metric": metric, "value": value}
    if skipped := history.series("alarm/skipped_step"):
        found["skipped_steps"] = len(skipped)
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    hours = sum(history.values(DEVICE_HOURS, most=1))
    return found | {"device_hours": hours, "workers": world.size, "device": device}


def fingerprint_of(label: str, settings: dict[str, object], input_urls: list[str]) -> str:
    """Hash of a job's kind, settings, inputs' content and code version."""
    inputs = [read_provenance(url)["digest"] for url in input_urls]
    return digest_of([label, settings, inputs, __version__])


def config_or_usage_error(model: type[ConfigT], values: dict[str, object]) -> ConfigT:
    """`values`, some of them from the inputs, as a `model`; UsageError when recipe and inputs do not go together."""
    return parse_config(model, values, "recipe and inputs do not go together")
