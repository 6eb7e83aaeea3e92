"""One id from logits: what of the distribution is kept, and the inversion of its distribution function.

Shapes: B images, V vocabulary. Nothing here sorts the vocabulary, but for a nucleus of more than `NUCLEUS` ids.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from flextok.model.sampling.config import DrawConfig

WHOLE = DrawConfig()
BLOCK = 256
NUCLEUS = 1024
BELOW_ONE = 1.0 - 2.0**-52
NONE = -1


def sample_id(logits_BV: Tensor, uniform_B: Tensor, law: DrawConfig = WHOLE, way: float = 0.0) -> Tensor:
    """Ids [B] drawn from softmax(logits / temperature) by inverting its distribution function at `uniform_B`.

    `law.top_k` keeps the k likeliest ids; then `top_p` the fewest whose share of these reaches p; then `min_p` those at
    least so many times as likely as the likeliest. Ids as likely as the last one kept are kept too. The temperature is
    that of the point `way`, 0 to 1; where it is 0, the likeliest id is taken. Guidance is the caller's. An image whose
    logits hold NaN or infinity has the id `NONE`.
    """
    temperature, top_k, top_p = law.temperature_at(way), law.top_k, law.top_p
    if temperature == 0:
        likeliest = logits_BV.max(-1)
        return likeliest.indices.where(likeliest.values.isfinite(), NONE)
    scaled = logits_BV.float() if temperature == 1 else logits_BV.float() / temperature
    weights = scaled.softmax(-1)
    if top_k is not None and top_k < weights.shape[-1]:
        weights.masked_fill_(weights < weights.topk(top_k).values[:, -1:], 0.0)
    if top_p is not None and top_p < 1:
        weights.masked_fill_(weights < _last_of_nucleus(weights, top_p), 0.0)
    if law.min_p is not None:
        weights.masked_fill_(weights < law.min_p * weights.amax(-1, keepdim=True), 0.0)
    return _inverted(weights, uniform_B)


def _last_of_nucleus(weights_BV: Tensor, top_p: float) -> Tensor:
    """Weight [B,1] of the last of the fewest likeliest ids whose share reaches `top_p`."""
    wanted_B1 = top_p * weights_BV.sum(-1, keepdim=True, dtype=torch.float64)
    likeliest = weights_BV.topk(min(NUCLEUS, weights_BV.shape[-1])).values
    last_B1 = _last_reaching(likeliest, wanted_B1)
    wide_B = likeliest.sum(-1, dtype=torch.float64) < wanted_B1[:, 0]
    if wide_B.any():
        last_B1[wide_B] = _last_reaching(weights_BV[wide_B].sort(dim=-1, descending=True).values, wanted_B1[wide_B])
    return last_B1


def _last_reaching(ordered: Tensor, wanted_B1: Tensor) -> Tensor:
    """Of weights from the largest on, the one [B,1] at which their sum reaches `wanted_B1`."""
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    reached = (before < wanted_B1).sum(-1, keepdim=True) - 1  # -1 where the sums are NaN
    return ordered.gather(-1, reached.clamp(min=0))


def _inverted(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first id [B] at which the sum of weights exceeds the share `uniform_B` of their total.

    First the block in which that happens, then the place within it, so that few sums are in double precision: in single
    precision those over a large vocabulary lose the rare ids.
    """
    missing = -weights_BV.shape[-1] % BLOCK
    whole = F.pad(weights_BV, (0, missing)) if missing else weights_BV
    blocks = whole.unflatten(-1, (-1, BLOCK))
    mass = blocks.sum(-1).double()
    cumulative = mass.cumsum(-1)
    target_B1 = uniform_B.double()[:, None] * cumulative[:, -1:]
    # Where the sums are NaN, a place is found beyond the end.
    block_B1 = torch.searchsorted(cumulative, target_B1, right=True).clamp(max=cumulative.shape[-1] - 1)
    own_mass = mass.gather(-1, block_B1)
    share_B1 = (target_B1 - cumulative.gather(-1, block_B1) + own_mass) / own_mass
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block_B1[:, 0]].cumsum(-1, dtype=torch.float64)
    # Below one, since beyond the last id of the block that has weight there may be ids which have none.
    place_B1 = torch.searchsorted(inside, share_B1.clamp(0.0, BELOW_ONE) * inside[:, -1:], right=True)
    return (block_B1 * BLOCK + place_B1)[:, 0].where(cumulative[:, -1].isfinite(), NONE)
