"""Representation alignment (REPA, Yu et al., arXiv 2410.06940): features of a decoder drawn to those of a frozen teacher.

Shapes: B images, P patches, D width of the decoder, F width of the teacher.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Sequential):
    """A decoder's patches [B,P,D] to the teacher's width [B,P,F]: three layers with SiLU, as published."""

    def __init__(self, width: int, hidden: int, features: int):
        super().__init__(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, features),
        )


def alignment_loss(projected_BPF: Tensor, features_BPF: Tensor) -> Tensor:
    """[B]: negative cosine similarity, the mean over patches; in float32, since half precision gave NaN upstream."""
    return -F.cosine_similarity(projected_BPF.float(), features_BPF.float(), dim=-1).mean(dim=1)


def no_alignment(projector: nn.Module, count: int) -> Tensor:
    """[count] zeros that depend on the projector: DDP waits for a gradient of every parameter."""
    parameters = list(projector.parameters())
    zero = sum((parameter.sum() for parameter in parameters[1:]), start=parameters[0].sum()) * 0.0
    return zero.float().expand(count)
