"""What callers hand to the tokenizer, checked: each fault is a ValueError that says what was expected."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_images(images: Tensor, multiple: int) -> Tensor:
    """Images as float32 [B,3,H,W], finite, with sides in multiples of `multiple`."""
    _check_float("images", images, "[B,3,H,W] in [-1,1]")
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[0] == 0:
        raise ValueError(f"expected images of shape [B,3,H,W] with B >= 1, found {list(images.shape)}")
    height, width = images.shape[2:]
    if height == 0 or width == 0 or height % multiple or width % multiple:
        raise ValueError(f"expected image sides in multiples of {multiple} pixels, found {height}x{width}")
    return _finite("images", images)


def check_latents(z: Tensor, channels: int) -> Tensor:
    """Latents as float32 [B,c,h,w], finite."""
    _check_float("latents", z, f"[B,{channels},h,w]")
    if z.dim() != 4 or z.shape[1] != channels or z.shape[0] == 0:
        raise ValueError(f"expected latents of shape [B,{channels},h,w] with B >= 1, found {list(z.shape)}")
    return _finite("latents", z)


def check_noise(noise: Tensor, batch: int, channels: int) -> Tensor:
    """The sampler's starting point as float32 [batch,c,h,w], finite."""
    _check_float("noise", noise, f"[{batch},{channels},h,w]")
    if noise.dim() != 4 or noise.shape[:2] != (batch, channels):
        raise ValueError(f"expected noise of shape [{batch},{channels},h,w], found {list(noise.shape)}")
    return _finite("noise", noise)


TokenIds = Tensor | Sequence[Tensor | Sequence[int]]


def check_codes(ids: TokenIds, longest: int, vocab_size: int, codebooks: int) -> tuple[Tensor, Tensor]:
    """Ids padded with 0 to [B,longest] (or [B,longest,C]) and how many each image has, int64 [B].

    With `vocab_size` 0, tokens are finite numbers, float32 [B,longest,C]. What the padding holds never matters: the
    decoder overwrites it.
    """
    tail = () if codebooks == 1 and vocab_size else (codebooks,)
    rows = _rows(ids, len(tail)) if isinstance(ids, Tensor) else [torch.as_tensor(row).cpu() for row in ids]
    if not rows:
        raise ValueError("expected ids of at least one image, found none")
    rows = [_check_row(row, longest, vocab_size, tail) for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.zeros(len(rows), longest, *tail, dtype=torch.long if vocab_size else torch.float32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded, lengths


def check_keep(keep: int | Sequence[int] | Tensor | None, lengths: Tensor) -> Tensor:
    """How many tokens to use of each image, int64 [B], at most as many as it has."""
    if keep is None:
        return lengths
    if isinstance(keep, Sequence) or (isinstance(keep, Tensor) and keep.dim() == 1):
        values = [check_integer("keep", value) for value in keep]
    else:
        values = [check_integer("keep", keep)] * len(lengths)
    if len(values) != len(lengths):
        raise ValueError(f"expected keep as an int or {len(lengths)} of them, found {len(values)}")
    for value, length in zip(values, lengths.tolist(), strict=True):
        if not 1 <= value <= length:
            raise ValueError(f"expected keep in 1..{length}, the tokens given, found {value}")
    return torch.tensor(values)


def check_sample_ids(sample_ids: Sequence[int | str] | None, batch: int) -> Sequence[int | str]:
    """Names of the images' random streams; by default their places in the call."""
    if sample_ids is None:
        return range(batch)
    if len(sample_ids) != batch:
        raise ValueError(f"expected {batch} sample_ids, one for each image, found {len(sample_ids)}")
    return sample_ids


def check_integer(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"expected {name} as an integer of at least {least}, found {value!r}")
    return number


def check_guidance(guidance: Any) -> None:
    """Guidance is a finite number or a function of t."""
    if callable(guidance) or (isinstance(guidance, int | float) and math.isfinite(guidance)):
        return
    raise ValueError(f"expected guidance as a finite number or a function of t, found {guidance!r}")


def _rows(ids: Tensor, tail_dims: int) -> list[Tensor]:
    if ids.dim() != 2 + tail_dims:
        wanted = "[B,K,C]" if tail_dims else "[B,K]"
        raise ValueError(f"expected ids of shape {wanted} or a list of prefixes, found shape {list(ids.shape)}")
    return list(ids.cpu())


def _check_row(row: Tensor, longest: int, vocab_size: int, tail: tuple[int, ...]) -> Tensor:
    if vocab_size == 0:
        _check_float("tokens", row, "[B,K,C], as the quantizer is continuous")
    elif row.is_floating_point() or row.is_complex() or row.dtype == torch.bool:
        raise ValueError(f"expected ids as integers, found {row.dtype}")
    if row.dim() != 1 + len(tail) or row.shape[1:] != tail or not 1 <= len(row) <= longest:
        wanted = ",".join(["K", *map(str, tail)])
        raise ValueError(f"expected ids of an image as [{wanted}] with K in 1..{longest}, found {list(row.shape)}")
    if vocab_size == 0:
        return _finite("tokens", row)
    row = row.long()
    low, high = int(row.min()), int(row.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"expected ids in 0..{vocab_size - 1}, found {low if low < 0 else high}")
    return row


def _check_float(name: str, value: Tensor, wanted: str) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"expected {name} as a float tensor {wanted}, found {found}")


def _finite(name: str, value: Tensor) -> Tensor:
    value = value.float()
    if not torch.isfinite(value).all():
        raise ValueError(f"expected finite {name}, found NaN or infinity")
    return value
