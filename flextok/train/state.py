"""Training states: what a killed run resumes from. Safetensors and JSON in `<run>/step_N/`, the JSON last."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import safetensors.torch
from torch import Tensor

from flextok import storage
from flextok.runtime.lock import LOCK_FILE, locked
from flextok.train.sinks.base import HistoryRow

FORMAT = "flextok.training-state/1"
TENSORS, RECORD = "state.safetensors", "state.json"


@dataclass
class TrainState:
    """Everything that changes while training: `step` steps are done; all else follows from the step and the seed."""

    step: int
    tensors: dict[str, Tensor]
    history: list[HistoryRow]


def save_state(run_url: str, state: TrainState) -> None:
    """Write `state` under `run_url`, then remove the older ones; at every moment one complete state is there."""
    name = f"step_{state.step:09d}"
    with storage.atomic_write(storage.join(run_url, name, TENSORS)) as file:
        safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in state.tensors.items()}, file.name)
    record = {"format": FORMAT, "step": state.step, "history": state.history}
    storage.write_json(storage.join(run_url, name, RECORD), record)
    for other in _step_names(run_url):
        if other != name:
            storage.remove(storage.join(run_url, other))


def load_latest_state(run_url: str) -> TrainState | None:
    """The newest complete state under `run_url`, on the CPU; None when there is none."""
    for name in reversed(_step_names(run_url)):
        folder = storage.join(run_url, name)
        if storage.exists(storage.join(folder, RECORD)):
            record = storage.read_json(storage.join(folder, RECORD))
            with storage.as_local_file(storage.join(folder, TENSORS)) as path:
                tensors = safetensors.torch.load_file(path)
            history = [(int(step), str(key), float(value)) for step, key, value in record["history"]]
            return TrainState(int(record["step"]), tensors, history)
    return None


def latest_step(run_url: str) -> int | None:
    """Steps that the newest complete state under `run_url` has done; None when there is none."""
    for name in reversed(_step_names(run_url)):
        if storage.exists(storage.join(run_url, name, RECORD)):
            return int(name.removeprefix("step_"))
    return None


@contextlib.contextmanager
def locked_run(run_url: str) -> Iterator[None]:
    """Hold `run_url` while the block trains, and leave no empty folder. Raises LockedError when another run holds it."""
    try:
        with locked(run_url):
            yield
    finally:
        if storage.is_local(run_url):
            with contextlib.suppress(OSError):
                storage.local_path(run_url).rmdir()


def clear_run(run_url: str) -> None:
    """Remove all that a finished run kept under `run_url`; whoever calls holds its lock, which stays."""
    fs, path = storage.filesystem(run_url)
    fs.invalidate_cache()
    for name in fs.ls(path, detail=False):  # with the temporary files of killed writers
        if not name.endswith(f"/{LOCK_FILE}"):
            fs.rm(name, recursive=True)


def _step_names(run_url: str) -> list[str]:
    return [name for name in storage.list_names(run_url) if name.startswith("step_")]
