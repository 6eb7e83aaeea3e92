"""Floating-point operations of our transformers' matrix products, by formula; a multiply and an add are two."""

TRAINING = 3
"""Times that the products of a forward pass are made in training: forward, and two backward. Products that are made again to
save memory are not counted, as is usual (PaLM, arXiv 2204.02311, appendix B)."""


def linear_flops(positions: int, inputs: int, outputs: int) -> float:
    """Of a linear layer on so many positions."""
    return 2.0 * positions * inputs * outputs


def block_flops(width: int, hidden: int, positions: int, pairs: float, rows: int | None = None) -> float:
    """Of a block with SwiGLU on `positions`, of which `rows` (all, unless given) ask and are made anew.

    `pairs`: of a row and a position that it may look at.
    """
    rows = positions if rows is None else rows
    attention = linear_flops(rows, width, 2 * width) + linear_flops(positions, width, 2 * width) + 4.0 * width * pairs
    return attention + linear_flops(rows, width, 3 * hidden)


def causal_pairs(positions: int) -> float:
    """Where each position sees itself and those before it."""
    return positions * (positions + 1) / 2
