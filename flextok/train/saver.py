"""Training states written while the training goes on, by all of its members together.

torch.distributed.checkpoint copies what a member is to write to the memory of its node, where a thread writes it: shards
by the member that holds them, whole tensors shared out. Nothing of it is pickled on disk (see state_storage.py).
"""

import logging
import warnings
from concurrent.futures import Future, wait
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from flextok.errors import FlextokError
from flextok.runtime.storage_errors import storage_detail
from flextok.train.parallel import DistContext
from flextok.train.sharding import is_sharded
from flextok.train.sinks.base import HistoryRow
from flextok.train.state import SavedState, latest_step

logger = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""Longest time that a training stands still for the state before the one that is due."""

# Imported where it is used: a process that only plans a training has no need of torch's checkpoints, which take a second.


class StateSaver:
    """Writes and reads the states of a training under `run_url`, of which the newest `keep` stay.

    All members make one and call its methods alike, but for `save_alone`. A state that cannot be written is told in one
    line and the training goes on: those from before are still there.
    """

    def __init__(self, run_url: str, world: DistContext, keep: int = 1):
        self._run_url, self._world, self._keep = run_url, world, keep
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        # Of its own, as the threads' messages must not meet those of the steps; on the CPU whatever these are on.
        group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._group = cast(dist.ProcessGroup | None, group)  # of which this process is a member
        self._written: Future | None = None
        self._step = 0  # of the state that is being written

    def save(self, step: int, tensors: dict[str, Tensor], history: list[HistoryRow]) -> None:
        """Begin to write the state after `step` steps. It is left out where the one before takes longer than PATIENCE_S."""
        is_late = torch.tensor(float(not self._wait(PATIENCE_S)), device=self._world.device)
        if self._world.sum(is_late) > 0:
            if self._world.is_first:
                logger.warning(
                    "step %d: its training state is left out, as that of step %d is still being written; raise "
                    "train.checkpoint_every where this goes on", step, self._step,
                )  # fmt: skip
            return
        self._begin(step, share(tensors, self._world), history)

    def save_now(self, step: int, tensors: dict[str, Tensor], history: list[HistoryRow]) -> None:
        """Write the state after `step` steps, and wait for it."""
        self._wait()
        self._begin(step, share(tensors, self._world), history)
        self._wait()

    def save_alone(self, step: int, tensors: dict[str, Tensor], history: list[HistoryRow]) -> None:
        """The same by this member without the others, of tensors that are whole here."""
        self._wait()
        self._begin(step, tensors, history, alone=True)
        self._wait()

    def tell(self) -> None:
        """Say so if a state could not be written; takes no time."""
        self._wait(0)

    def close(self) -> None:
        """Wait for the state that is being written."""
        self._wait()
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def load(self, state: SavedState, tensors: dict[str, Tensor]) -> None:
        """Fill `tensors`, whole or in shards, in place; FlextokError where `state` has other ones or is damaged."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
        from torch.distributed.checkpoint.state_dict_loader import load

        from flextok.train.state_storage import StateReader

        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            load(
                tensors,  # pyright: ignore[reportArgumentType]
                storage_reader=StateReader(state),
                planner=planner,
                process_group=self._group,
                no_dist=self._group is None,
            )
        except CheckpointException as error:
            raise FlextokError(
                f"expected the training state {state.url} to have what this training has, found: {_cause(error)}; "
                "remove the folder to train from the start"
            ) from None

    def _begin(self, step: int, tensors: dict[str, Tensor], history: list[HistoryRow], alone: bool = False) -> None:
        from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
        from torch.distributed.checkpoint.state_dict_saver import async_save

        from flextok.train.state_storage import StateWriter

        self._step = step
        found = async_save(
            tensors,  # pyright: ignore[reportArgumentType]
            storage_writer=StateWriter(self._run_url, step, list(history), self._keep),
            planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=self._group,
            no_dist=alone or self._group is None,
        )
        assert isinstance(found, Future)
        self._written = found

    def _wait(self, most_s: float | None = None) -> bool:
        """Whether no state is being written any more, after at most so many seconds; says so if one failed."""
        if self._written is None:
            return True
        if wait([self._written], most_s).not_done:
            return False
        error, self._written = self._written.exception(), None
        if error is not None and self._world.is_first:
            logger.warning(
                "step %d: could not write its training state: %s; the training goes on, and would resume after step %d",
                self._step, _cause(error), latest_step(self._run_url) or 0,
            )  # fmt: skip
        return True


def share(tensors: dict[str, Tensor], world: DistContext) -> dict[str, Tensor]:
    """What this member writes of `tensors`: its shards, and such whole ones that all members write about as much."""
    loads, found = [0] * world.size, {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        if is_sharded(tensor):
            found[name] = tensor
            continue
        owner = loads.index(min(loads))
        loads[owner] += tensor.nbytes
        if owner == world.rank:
            found[name] = tensor
    return found


def _cause(error: BaseException) -> str:
    """What went wrong on the first member that failed."""
    failures = getattr(error, "failures", None) or {0: (error, None)}
    return storage_detail(failures[min(failures)][0])
