"""Where work runs: Ray's address, workers, devices. Never decides a result."""

import os
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from flextok.config import Config
from flextok.errors import UsageError


class ComputeConfig(Config):
    """Where the work runs. Never decides results beyond the rounding of sums."""

    address: str = Field(
        default="local", description='Ray: "local" starts it on this machine, "auto" or host:port joins one.'
    )
    num_cpus: int | None = Field(default=None, gt=0, description="CPUs that a local Ray may use; null means all.")
    train_workers: int = Field(
        default=2, ge=0, description="Training processes; 0 trains in this process, without Ray."
    )
    parallel: Literal["auto", "ddp", "fsdp", "hsdp"] = Field(
        default="auto",
        description="How training workers hold a model: each the whole (ddp), in shards over all of them (fsdp), or in "
        "shards over those of a node (hsdp); auto is fsdp where weights, gradients, average and moments would fill half "
        "of a GPU's memory, else ddp.",
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        default="none",
        description="What of a block's forward pass training computes again rather than keeps: all but results of matrix "
        "products and attention (selective), or everything (full).",
    )
    compile: bool = Field(
        default=False,
        description="Compile the blocks for training, where torch finds a compiler; else a warning says so.",
    )
    gpus_per_worker: float = Field(
        default=0, ge=0, description="GPUs for each worker that trains, tokenizes or decodes."
    )
    max_failures: int = Field(
        default=2, ge=0, description="Times a training group is restarted after a worker was lost."
    )
    start_timeout_s: float | None = Field(
        default=None, gt=0, description="Longest wait for room for the training workers; null waits until there is."
    )
    tokenize_actors: tuple[int, int] = Field(
        default=(1, 2),
        description="Fewest and most actors that tokenize a corpus; on a cluster as many at most decode in evaluations.",
    )
    threads: int | None = Field(
        default=None, gt=0, description="Threads of each worker; null shares the machine's cores out."
    )
    resources: dict[str, Annotated[float, Field(gt=0)] | str] = Field(
        default={},
        description="What workers ask a cluster's nodes for beside CPUs and GPUs: an amount of a custom resource, or the "
        "value of a label.",
    )
    price_per_hour: float | None = Field(
        default=None,
        ge=0,
        description="Price of an hour of one GPU, or of one CPU where no GPUs are asked for; the pages of assets then "
        "show what they cost.",
    )

    @field_validator("resources")
    @classmethod
    def _own_settings(cls, value: dict[str, float | str]) -> dict[str, float | str]:
        for name in value.keys() & {"CPU", "GPU", "memory", "object_store_memory"}:
            raise ValueError(f"expected custom resources and labels, found {name}; see threads and gpus_per_worker")
        return value

    @property
    def on_cluster(self) -> bool:
        """Whether the work runs on a cluster that is there, not on this machine."""
        return self.address != "local"

    def cpus(self) -> int:
        """CPUs of this machine that work may use."""
        return self.num_cpus or os.cpu_count() or 1


def parse_resources(items: Sequence[str]) -> dict[str, float | str]:
    """`name=value` texts as `ComputeConfig.resources`: a number is an amount, all else a label's value.

    Raises UsageError for anything else.
    """
    found: dict[str, float | str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise UsageError(f"expected --resource NAME=VALUE, found --resource {item}")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found
