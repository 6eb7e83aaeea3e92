"""Products of frozen weights with few rows, in the layout that this machine reads fastest.

With few rows a product takes as long as reading the weight, and which layout is read at the memory's speed differs with
the shape, the rows, the precision and the processor. So each is timed, on the weights themselves.
"""

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""From [rows,in] to [rows,out], any number of rows."""
Layout = Callable[[Tensor, Tensor | None, int], Product]
"""Of a weight [out,in], its bias [out] or None, and the rows it will mostly be multiplied with."""

ROUNDS = 8
CLEARLY = 0.95
"""A later layout takes the place of an earlier one for a time of at most so much, lest noise decide."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def plain(weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    """The weight as it is."""
    return lambda x: F.linear(x, weight, bias)


def columns(weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    """The weight stored as [in,out]."""
    transposed = weight.t().contiguous()
    return lambda x: x @ transposed if bias is None else torch.addmm(bias, x, transposed)


def weight_first(weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    """The weight as it is, on the left side of the product."""
    column = None if bias is None else bias[:, None]

    def product(x: Tensor) -> Tensor:
        return (weight @ x.t() if column is None else torch.addmm(column, weight, x.t())).t().contiguous()

    return product


def packed(weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    """The weight in the blocked form that oneDNN chooses for so many rows; by operators that torch keeps to itself."""
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "none", [], "")


LAYOUTS: tuple[Layout, ...] = (plain, columns, weight_first, packed)


def unchanged(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int) -> list[Product]:
    """The products with each of `weights` as it is: no copy, and the same bits at each load."""
    return [plain(weight, bias, rows) for weight, bias in zip(weights, biases, strict=True)]


def fastest(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int) -> list[Product]:
    """The products with each of `weights`, all of one shape, in the layout that was fastest over all of them.

    One after the other, since a model's weights are seldom all in the processor's cache. Which layout wins may differ
    from load to load where two are close, and with it the last bits of the results.
    """
    best = unchanged(weights, biases, rows)
    if weights[0].device.type != "cpu":
        return best
    x = torch.randn(rows, weights[0].shape[1], generator=torch.Generator().manual_seed(0)).to(weights[0].dtype)
    expected, least = best[0](x), _seconds(best, x)
    for layout in LAYOUTS[1:]:
        try:
            products = [layout(weight, bias, rows) for weight, bias in zip(weights, biases, strict=True)]
            is_right = _is_close(products[0](x), expected)
        except (AttributeError, RuntimeError):  # an operator of torch's own that this version or build has not
            continue
        if is_right and (seconds := _seconds(products, x)) < CLEARLY * least:
            best, least = products, seconds
    return best


def _is_close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE[expected.dtype] * expected.abs().max())


def _seconds(products: Sequence[Product], x: Tensor) -> float:
    """Shortest time of all products one after the other."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for product in products:
            product(x)
        times.append(time.perf_counter() - start)
    return min(times)
