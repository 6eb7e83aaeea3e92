"""The trunk of an autoregressive prior for sampling: each position once, keys and values of the earlier ones kept.

Shapes: R rows (images, twice where guided), N new positions, D width, H heads, T text positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flextok.model.nn.attention import attend
from flextok.model.nn.layouts import Product, fastest, unchanged

if TYPE_CHECKING:
    from flextok.model.priors.autoregressive import AutoregressivePrior

Memory = list[tuple[Tensor, Tensor, Tensor]]
"""For each block keys and values of the text, [R,H,T,head_dim], and where they hold something, bool [R,1,1,T]."""


@dataclass
class Cache:
    """Keys and values of the positions seen so far, one pair a block, [R,H,L,head_dim]; `length` are filled."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0

    def select(self, rows_R: Tensor) -> None:
        """Go on with these rows alone."""
        self.keys = [part[rows_R] for part in self.keys]
        self.values = [part[rows_R] for part in self.values]


class CachedTrunk:
    """What `AutoregressivePrior.loss` computes with, arranged for one position at a time: fewer, wider products.

    `rows`: lay the weights out as is fastest for so many rows (a copy of them); None leaves them as they are. `dtype` is
    that of the products, float32 or bfloat16; all else, cache and logits too, has that of the prior's parameters.
    """

    def __init__(self, prior: "AutoregressivePrior", rows: int | None = None, dtype: torch.dtype | None = None):
        self._prior, self._rows, self._dtype = prior, rows, dtype or prior.head.weight.dtype
        blocks: list[Any] = list(prior.blocks)
        self._norms: list[nn.ModuleList] = [block.norms for block in blocks]
        self._qkv = self._products(
            [torch.cat([block.attention.query.weight, block.attention.key_value.weight]) for block in blocks]
        )
        self._out = self._products([block.attention.out.weight for block in blocks])
        self._up = self._products([block.up.weight for block in blocks])
        self._down = self._products([block.down.weight for block in blocks])
        crossed = [block.cross for block in blocks if block.cross is not None]
        self._cross_query = self._products([cross.query.weight for cross in crossed])
        self._cross_out = self._products([cross.out.weight for cross in crossed])
        self._head = self._products([prior.head.weight], prior.head.bias)[0]

    def _products(self, weights: Sequence[Tensor], bias: Tensor | None = None) -> list[Product]:
        """The products with weights of one shape, in and out in the parameters' precision."""
        if not weights:
            return []
        own, inside = weights[0].dtype, self._dtype
        weights = [weight.detach().to(inside) for weight in weights]
        biases = [None if bias is None else bias.detach().to(inside)] * len(weights)
        products = unchanged(weights, biases, 1) if self._rows is None else fastest(weights, biases, self._rows)
        return products if own == inside else [_between(product, inside, own) for product in products]

    def new_cache(self, rows: int, length: int) -> Cache:
        """An empty cache for `length` positions."""
        config = self._prior.model
        shape = (rows, config.width // config.head_dim, length, config.head_dim)
        keys, values = ([self._prior.head.weight.new_zeros(shape) for _ in range(config.depth)] for _ in range(2))
        return Cache(keys, values)

    def advance(self, inputs_RND: Tensor, memory: Memory | None, cache: Cache) -> Tensor:
        """The last of the next positions as the head takes it, [R,D]; several at once only where the cache is empty."""
        rows, count, _ = inputs_RND.shape
        assert count == 1 or cache.length == 0  # else the causal mask would have to be shifted
        x = self._prior.placed(inputs_RND, cache.length).flatten(0, 1)
        for index in range(len(self._norms)):
            norms = self._norms[index]
            x = x + self._out[index](self._attended(norms[0](x), index, rows, cache))
            if memory is not None:
                x = x + self._cross_out[index](self._crossed(norms[2](x), index, rows, memory))
            gate, linear = self._up[index](norms[1](x)).chunk(2, dim=-1)
            x = x + self._down[index](F.silu(gate) * linear)
        cache.length += count
        return self._prior.norm(x.unflatten(0, (rows, count))[:, -1])

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R,V], float32."""
        return self._head(hidden_RD).float()

    def _attended(self, normed: Tensor, index: int, rows: int, cache: Cache) -> Tensor:
        head_dim = self._prior.model.head_dim
        qkv = self._qkv[index](normed).view(rows, -1, 3, normed.shape[-1] // head_dim, head_dim)
        queries, keys = self._prior.compared(qkv[:, :, :2], cache.length).transpose(1, 3).unbind(2)
        stop = cache.length + qkv.shape[1]
        cache.keys[index][:, :, cache.length : stop] = keys
        cache.values[index][:, :, cache.length : stop] = qkv[:, :, 2].transpose(1, 2)
        seen = (cache.keys[index][:, :, :stop], cache.values[index][:, :, :stop])
        return _merged(attend(queries, *seen, causal=qkv.shape[1] > 1))

    def _crossed(self, normed: Tensor, index: int, rows: int, memory: Memory) -> Tensor:
        head_dim = self._prior.model.head_dim
        query = self._cross_query[index](normed).view(rows, -1, normed.shape[-1] // head_dim, head_dim)
        keys, values, mask = memory[index]
        return _merged(attend(F.layer_norm(query, (head_dim,)).transpose(1, 2), keys, values, mask))


def _merged(mixed_RHND: Tensor) -> Tensor:
    return mixed_RHND.transpose(1, 2).flatten(2).flatten(0, 1)


def _between(product: Product, inside: torch.dtype, outside: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: product(x.to(inside)).to(outside)
