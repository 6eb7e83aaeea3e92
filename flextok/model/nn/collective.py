"""Sums over all processes that train one model together."""

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def summed(tensor: Tensor) -> Tensor:
    """`tensor` summed over the processes that train together, each of which must call it; as it is where there is one.

    For statistics of a batch that a forward pass puts into buffers (counts and sums of an EMA codebook): those of the
    whole batch are then the same on every process, whatever its part. Not differentiable.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total
