"""How a model is spread over the processes that train it: whole on each (DDP), or in shards (FSDP2).

Tensors of a sharded model are torch's DTensors: each process holds its rows of them.
"""

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flextok.errors import UsageError
from flextok.runtime.compute import ComputeConfig
from flextok.train.blocks import trunk_blocks
from flextok.train.parallel import DistContext

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

# Imported where it is used: a process that only plans a training has no need of FSDP, whose import takes a second.

STATE_BYTES = 20
"""Of a parameter in training, all float32: weight, gradient, average, the two moments of AdamW."""
STATE_SHARE = 0.5
"""Part of a device's memory that these may take; the rest is for activations."""


def chosen_parallel(
    compute: ComputeConfig, parameters: Iterable[nn.Parameter], world: DistContext
) -> Literal["ddp", "fsdp", "hsdp"]:
    """What `compute.parallel` means here; auto is fsdp where the training state would fill half of a device's memory."""
    if compute.parallel != "auto":
        return compute.parallel
    if world.device.type != "cuda":
        return "ddp"
    needed = STATE_BYTES * sum(parameter.numel() for parameter in parameters)
    memory = torch.cuda.get_device_properties(world.device).total_memory
    fits = torch.tensor(int(needed <= STATE_SHARE * memory), device=world.device)
    return "ddp" if world.from_first(fits) else "fsdp"


def wrap(module: nn.Module, world: DistContext, parallel: Literal["ddp", "fsdp", "hsdp"]) -> nn.Module:
    """`module` to call in its place: gradients of what it gives back are means over all members.

    With fsdp or hsdp the trained parameters of `module` itself become shards, which a block gathers while it runs; so
    this comes before anything is made of them. Buffers are left to `buffers.LearnedBuffers`: those of frozen parts are
    equal from the start.
    """
    if world.size == 1:
        return module
    if parallel == "ddp":
        return DistributedDataParallel(module, gradient_as_bucket_view=True, forward_sync_buffers=False)
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = _nodes_mesh(world) if parallel == "hsdp" else _mesh(world, (world.size,))
    frozen = {parameter for parameter in module.parameters() if not parameter.requires_grad}
    # The last block gives the registers back as they came; nothing here writes into what a block gave.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in trunk_blocks(module):
        fully_shard(block, mesh=mesh, ignored_params=frozen)
        for method in getattr(block, "forward_methods", ()):
            register_fsdp_forward_method(block, method)
    fully_shard(module, mesh=mesh, ignored_params=frozen)
    return module


def wrapped_again(wrapped: nn.Module, module: nn.Module, world: DistContext) -> nn.Module:
    """What to call in the place of `wrapped`, made of `module`, once fewer parameters are trained: DDP waits for all it knew."""
    return wrap(module, world, "ddp") if isinstance(wrapped, DistributedDataParallel) else wrapped


def _mesh(world: DistContext, shape: tuple[int, ...], names: tuple[str, ...] | None = None) -> "DeviceMesh":
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(world.device.type, shape, mesh_dim_names=names)


def _nodes_mesh(world: DistContext) -> "DeviceMesh":
    """Shards within a node, equal copies on all nodes; UsageError where these have unequal numbers of workers."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))  # as torchrun and Ray Train tell it
    workers = torch.zeros(world.size, dtype=torch.int64, device=world.device)
    workers[world.rank] = here
    beside = sorted(set(world.sum(workers).tolist()))
    if len(beside) > 1:
        raise UsageError(
            f"expected as many workers on each node for compute.parallel hsdp, found {beside[0]} to {beside[-1]}; "
            "take fsdp, or other compute.train_workers"
        )
    return _mesh(world, (world.size // here, here), ("replicate", "shard"))


@contextlib.contextmanager
def adding_up(module: nn.Module, is_last: bool) -> Iterator[None]:
    """Around forward and backward pass of one of several slices of a batch: whole gradients are exchanged in the last.

    Shards of them are in each slice: to wait would take the memory of the whole ones, which is what sharding saves.
    """
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not is_last else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """A block in which what `module` holds outside its blocks is whole, for others to use; all members enter it."""
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this process holds only some rows of `tensor`."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`, in the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """`tensor` with all its rows; where it is sharded all members call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole `tensor`, the same on all members, in the shards of `other`."""
    if not is_sharded(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


@torch.no_grad()
def make_whole(module: nn.Module, world: DistContext) -> None:
    """Put whole parameters in the place of sharded ones in the first member; all members call it.

    What FSDP added to the modules stays there: they are to be saved, not called.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if is_sharded(parameter):
                found = whole(cast(Tensor, parameter))
                if world.is_first:
                    part.register_parameter(name, nn.Parameter(found, requires_grad=parameter.requires_grad))
