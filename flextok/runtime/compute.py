"""Where work runs: Ray's address, workers, devices. Never decides a result."""

import os

from pydantic import Field

from flextok.config import Config


class ComputeConfig(Config):
    """Where the work runs. Never decides results beyond the rounding of sums."""

    address: str = Field(
        default="local", description='Ray: "local" starts it on this machine, "auto" or host:port joins one.'
    )
    num_cpus: int | None = Field(default=None, gt=0, description="CPUs that a local Ray may use; null means all.")
    train_workers: int = Field(
        default=2, ge=0, description="Training processes; 0 trains in this process, without Ray."
    )
    gpus_per_worker: float = Field(default=0, ge=0, description="GPUs for each training worker or tokenizing actor.")
    max_failures: int = Field(
        default=2, ge=0, description="Times a training group is restarted after a worker was lost."
    )
    start_timeout_s: float = Field(default=120.0, gt=0, description="Longest wait for the training workers to start.")
    tokenize_actors: tuple[int, int] = Field(
        default=(1, 2), description="Fewest and most actors that tokenize a corpus."
    )
    threads: int | None = Field(
        default=None, gt=0, description="Threads of each worker; null shares the machine's cores out."
    )

    def cpus(self) -> int:
        """CPUs of this machine that work may use."""
        return self.num_cpus or os.cpu_count() or 1
