"""How torch.distributed.checkpoint reads and writes training states: safetensors and JSON in place of its pickles.

Its own writers pickle the metadata, and its reader unpickles it; its safetensors writer keeps none for parts that are not
consolidated on one node. So here it plans who writes and who reads what, and this module stores it.
"""

import contextlib
import dataclasses
import logging
import uuid
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from flextok import storage
from flextok.errors import FlextokError
from flextok.runtime.storage_errors import storage_detail
from flextok.train.sinks.base import HistoryRow
from flextok.train.state import (
    RECORD,
    Piece,
    SavedState,
    StateRecord,
    StoredTensor,
    opened,
    remove_older,
    remove_unfinished,
    state_url,
)

logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.CRITICAL)
"""Of torch: what failed is told by the saver in one line, and a record for each tensor takes time."""


class StateWriter(StorageWriter):
    """Writes the state after `step` steps: each member its part, then the first one the record; older states go after that.

    Failures of a disk or store are FlextokErrors, which all members get.
    """

    def __init__(self, run_url: str, step: int, history: list[HistoryRow], keep: int):
        self._run_url, self._step, self._history, self._keep = run_url, step, history, keep
        self._url = state_url(run_url, step)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one state to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make room: nobody writes yet."""
        if is_coordinator:
            remove_unfinished(self._run_url)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Names for the parts that no other writer has, not even one of a lost node that does not know it yet."""
        attempt = uuid.uuid4().hex[:8]
        return [
            dataclasses.replace(plan, storage_data=f"part-{number:05d}-{attempt}.safetensors")
            for number, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """This member's part, in one file."""
        tensors, results = {}, []
        for item in plan.items:
            tensor = cast(Tensor, planner.resolve_data(item)).detach().contiguous()
            piece = Piece(file=plan.storage_data, offsets=tuple(item.index.offset or ()), shape=tuple(tensor.shape))
            tensors[piece.key(item.index.fqn)] = tensor
            results.append(WriteResult(item.index, tensor.nbytes, piece))
        if tensors:
            try:
                with storage.atomic_write(storage.join(self._url, plan.storage_data)) as file:
                    safetensors.torch.save_file(tensors, file.name)
            except Exception as error:
                raise FlextokError(storage_detail(error)) from error  # other errors may not travel between processes
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """The record, which makes it a state."""
        pieces: dict[str, list[Piece]] = defaultdict(list)
        for result in (result for part in results for result in part):
            pieces[result.index.fqn].append(result.storage_data)
        try:
            sizes = storage.sizes(self._url)
            files = {piece.file: sizes[piece.file] for found in pieces.values() for piece in found}
            tensors = {name: _stored(metadata.state_dict_metadata[name], found) for name, found in pieces.items()}
            record = StateRecord(step=self._step, history=self._history, files=files, tensors=tensors)
            storage.write_json(storage.join(self._url, RECORD), record.model_dump(mode="json"))
        except Exception as error:
            raise FlextokError(storage_detail(error)) from error  # other errors may not travel between processes
        with contextlib.suppress(Exception):  # the state is there: what is left lying goes after the next one
            remove_older(self._run_url, self._keep)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """States are known by their run and step."""
        return False


class StateReader(StorageReader):
    """Reads the pieces of a state that a member asks for, whatever number of members wrote them."""

    def __init__(self, state: SavedState):
        self._url, self._tensors = state.url, state.record.tensors

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one state to the next."""

    def read_metadata(self, *args: Any) -> Metadata:
        """Shapes and pieces, from the record."""
        return Metadata({name: _metadata(tensor) for name, tensor in self._tensors.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any) -> None:
        """All is known by now."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As planned."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """One file after the other: of a store there is never more than one on the local disk."""
        by_file = defaultdict(list)
        for item in plan.items:
            piece = self._piece(item.storage_index)
            by_file[piece.file].append((piece.key(item.storage_index.fqn), item))
        for name, items in by_file.items():
            with opened(storage.join(self._url, name)) as file:
                for key, item in items:
                    block = file.get_tensor(key)
                    for axis, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                        block = block.narrow(axis, start, length)
                    planner.resolve_tensor(item).copy_(block)
        return _done(None)

    def _piece(self, index: MetadataIndex) -> Piece:
        return next(p for p in self._tensors[index.fqn].pieces if p.offsets == tuple(index.offset or ()))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """States are known by their run and step."""
        return False


def _stored(metadata: Any, pieces: Iterable[Piece]) -> StoredTensor:
    dtype = str(metadata.properties.dtype).removeprefix("torch.")
    return StoredTensor(dtype=dtype, shape=tuple(metadata.size), pieces=tuple(pieces))


def _metadata(tensor: StoredTensor) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.shape)) for p in tensor.pieces]
    return TensorStorageMetadata(TensorProperties(getattr(torch, tensor.dtype)), torch.Size(tensor.shape), chunks)


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
