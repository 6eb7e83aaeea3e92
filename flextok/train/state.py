"""Training states, which a killed run resumes from: what lies in `<run>/step_N/`, and which of them are there.

A state is one or more safetensors files, a part by each member that wrote it, and `state.json`, which is written last and
says which piece of which tensor lies in which file. A folder without it, or with other files than it names, is no state.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from safetensors import SafetensorError, safe_open

from flextok import storage
from flextok.config import Config, parse_config
from flextok.errors import FlextokError
from flextok.runtime.lock import LOCK_FILE, locked
from flextok.train.sinks.base import HistoryRow

logger = logging.getLogger(__name__)

FORMAT = "flextok.training-state/2"
ONE_FILE_FORMAT, ONE_FILE = "flextok.training-state/1", "state.safetensors"
"""Of versions that wrote whole tensors into one file, which the record did not list."""
RECORD = "state.json"


class Piece(Config):
    """A block of a tensor: the file that holds it, and where in the tensor it begins."""

    file: str = Field(pattern=r"^[\w.-]+$")
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    def key(self, name: str) -> str:
        """Its name in the file, as a piece of the tensor `name`."""
        return f"{name}@{','.join(map(str, self.offsets))}" if any(self.offsets) else name


class StoredTensor(Config):
    """A tensor by its pieces, which together are all of it."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


class StateRecord(Config):
    """What `state.json` holds: `step` steps are done, `history` are its rows so far."""

    format: str = FORMAT
    step: int
    history: list[HistoryRow]
    files: dict[str, int] = Field(description="Bytes of each file of tensors.")
    tensors: dict[str, StoredTensor]


@dataclass(frozen=True)
class SavedState:
    """A complete training state: its folder and its record."""

    url: str
    record: StateRecord


def state_url(run_url: str, step: int) -> str:
    """The folder of the state after `step` steps."""
    return storage.join(run_url, f"step_{step:09d}")


def newest_state(run_url: str) -> SavedState | None:
    """The newest complete state under `run_url`; None when there is none.

    One whose files are gone or cut off is passed over with a warning. Raises FlextokError for a format of another version.
    """
    for step in reversed(written_steps(run_url)):
        url = state_url(run_url, step)
        record = _read_record(url)
        found = storage.sizes(url)
        damaged = [name for name, size in record.files.items() if found.get(name) != size]
        if not damaged:
            return SavedState(url, record)
        logger.warning("the training state %s is passed over: %s is gone or cut off", url, ", ".join(damaged))
    return None


def latest_step(run_url: str) -> int | None:
    """Steps that the newest state under `run_url` has done; None when there is none."""
    return max(written_steps(run_url), default=None)


def written_steps(run_url: str) -> list[int]:
    """Steps of all states under `run_url` that were written to the end, in order."""
    return [
        int(name.removeprefix("step_"))
        for name in _folders(run_url)
        if storage.exists(storage.join(run_url, name, RECORD))
    ]


def remove_unfinished(run_url: str) -> None:
    """Remove what interrupted or failed writers left under `run_url`."""
    written = {state_url(run_url, step) for step in written_steps(run_url)}
    for name in _folders(run_url):
        if storage.join(run_url, name) not in written:
            storage.remove(storage.join(run_url, name))


def remove_older(run_url: str, keep: int) -> None:
    """Remove all states under `run_url` but the newest `keep`."""
    for step in written_steps(run_url)[:-keep]:
        storage.remove(storage.join(state_url(run_url, step), RECORD))  # first: half of a state is none
        storage.remove(state_url(run_url, step))


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


def _folders(run_url: str) -> list[str]:
    return [name for name in storage.list_names(run_url) if re.fullmatch(r"step_\d{9,}", name)]


def _read_record(url: str) -> StateRecord:
    values = storage.read_json(storage.join(url, RECORD))
    found = values.get("format") if isinstance(values, dict) else None
    if found == ONE_FILE_FORMAT:
        values = {**values, "format": FORMAT, **_one_file(url)}
    elif found != FORMAT:
        raise FlextokError(
            f"expected a training state of format {FORMAT} in {url}, found {found!r}; resume with the version that wrote "
            "it, or remove the folder"
        )
    return parse_config(StateRecord, values, storage.join(url, RECORD))


def _one_file(url: str) -> dict[str, Any]:
    """What the record of an earlier version leaves out, from the file itself."""
    file_url = storage.join(url, ONE_FILE)
    with opened(file_url) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        whole = {name: (str(file.get_tensor(name).dtype), tuple(s.get_shape())) for name, s in slices.items()}
    tensors = {
        name: {
            "dtype": dtype.removeprefix("torch."),
            "shape": shape,
            "pieces": [{"file": ONE_FILE, "offsets": (0,) * len(shape), "shape": shape}],
        }
        for name, (dtype, shape) in whole.items()
    }
    return {"files": {ONE_FILE: storage.size(file_url)}, "tensors": tensors}


@contextlib.contextmanager
def opened(url: str) -> Iterator[Any]:
    """A safetensors file of a state, whose tensors come on the CPU; FlextokError where it is damaged."""
    try:
        with storage.as_local_file(url) as path, safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise FlextokError(
            f"expected a whole part of a training state in {url}, found {error}; remove its folder to resume from the "
            "state before, or from the start"
        ) from None
