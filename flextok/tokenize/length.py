"""How many tokens an image needs: the length policies."""

from collections.abc import Sequence

import numpy as np
import torch

from flextok.model.tokenizer import Tokenizer
from flextok.tokenize.config import AllTokens, FixedLength, LengthPolicy, ThresholdLength


def kept_lengths(
    tokenizer: Tokenizer, policy: LengthPolicy, pixels: np.ndarray, ids: torch.Tensor, sample_ids: Sequence[str]
) -> np.ndarray:
    """Tokens kept of each image by `policy`, uint16 [B].

    pixels: uint8 [B, S, S, 3]; ids: [B, K] or [B, K, C], the stored tokens of the same images.
    """
    rows, stored = ids.shape[:2]
    if isinstance(policy, AllTokens):
        return np.full(rows, stored, np.uint16)
    if isinstance(policy, FixedLength):
        return np.full(rows, min(policy.tokens, stored), np.uint16)
    return _shortest_good(tokenizer, policy, pixels, ids, sample_ids).astype(np.uint16)


def _shortest_good(
    tokenizer: Tokenizer, policy: ThresholdLength, pixels: np.ndarray, ids: torch.Tensor, sample_ids: Sequence[str]
) -> np.ndarray:
    stored = ids.shape[1]

    def errors(rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
        names = [sample_ids[int(row)] for row in rows]
        return reconstruction_errors(tokenizer, policy, pixels[rows], ids[torch.from_numpy(rows)], keep, names)

    grid = sorted({*(2**power for power in range(stored.bit_length()) if 2**power <= stored), stored})
    everyone = np.arange(len(ids))
    curve_KB = np.stack([errors(everyone, np.full(len(ids), keep)) for keep in grid])
    lengths = np.full(len(ids), stored)
    falling = (np.diff(curve_KB, axis=0) <= 0).all(axis=0)

    # Where the error falls along the grid, the shortest good length lies in one of its gaps.
    good_KB = curve_KB <= _largest_error(policy)
    first = good_KB.argmax(axis=0)
    reached = good_KB.any(axis=0)
    high = np.array(grid)[first]
    low = np.where(first > 0, np.array([0, *grid])[first], 0)
    active = np.flatnonzero(falling & reached)
    lengths[active] = high[active]
    while (active := active[high[active] - low[active] > 1]).size:
        middle = (low[active] + high[active]) // 2
        good = errors(active, middle) <= _largest_error(policy)
        high[active] = np.where(good, middle, high[active])
        low[active] = np.where(good, low[active], middle)
        lengths[active] = high[active]

    waiting = np.flatnonzero(~falling)
    for keep in range(1, stored):
        if not waiting.size:
            break
        good = errors(waiting, np.full(len(waiting), keep)) <= _largest_error(policy)
        lengths[waiting[good]] = keep
        waiting = waiting[~good]
    return lengths


def reconstruction_errors(
    tokenizer: Tokenizer,
    policy: ThresholdLength,
    pixels: np.ndarray,
    ids: torch.Tensor,
    keep: np.ndarray,
    sample_ids: Sequence[str],
) -> np.ndarray:
    """Error of each image decoded from its first `keep[i]` tokens, float64 [B]; PSNR with its sign turned."""
    decoded = tokenizer.detokenize(
        ids,
        keep=keep.tolist(),
        steps=policy.steps,
        guidance=policy.guidance,
        norm_guidance=policy.norm_guidance,
        seed=policy.seed,
        sample_ids=list(sample_ids),
    )
    found = ((decoded.float().cpu().numpy().transpose(0, 2, 3, 1) + 1) / 2).clip(0, 1)
    difference = found.astype(np.float64) - pixels / 255
    if policy.metric == "mae":
        return np.abs(difference).mean(axis=(1, 2, 3))
    mse = np.square(difference).mean(axis=(1, 2, 3))
    return mse if policy.metric == "mse" else 10 * np.log10(np.maximum(mse, 1e-12))


def _largest_error(policy: ThresholdLength) -> float:
    return -policy.eps if policy.metric == "psnr" else policy.eps
