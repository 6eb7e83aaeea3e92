"""The precision of an evaluation's tokenizer, and tokens to 8-bit images with the settings of an evaluation."""

from collections.abc import Sequence

import numpy as np
import torch

from flextok.data.images import to_uint8
from flextok.errors import FlextokError
from flextok.evaluate.config import DecodingConfig
from flextok.model.decoders.config import SamplerConfig
from flextok.model.nn.precision import autocast_dtype
from flextok.model.tokenizer import Tokenizer


def decoding_dtype(config: DecodingConfig, device: str) -> torch.dtype:
    """float32 or bfloat16, as `config` says for `device`, which may be a GPU of other machines."""
    if config.precision == "auto" and device == "cuda" and not torch.cuda.is_available():
        return torch.bfloat16
    return autocast_dtype(config.precision, torch.device(device)) or torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """As protocols have it."""
    return str(dtype).removeprefix("torch.")


@torch.inference_mode()
def decode_ids(
    tokenizer: Tokenizer, ids: torch.Tensor, keep: int, keys: Sequence[str], sampler: SamplerConfig
) -> np.ndarray:
    """Images [B, H, W, 3] uint8 of the first `keep` tokens of `ids` [B, L] or [B, L, C].

    The noise of an image is drawn from the seed and its key, so it is the same at every K and in every batch.
    """
    images = tokenizer.detokenize(
        ids,
        keep=keep,
        steps=sampler.steps,
        guidance=sampler.guidance,
        norm_guidance=sampler.norm_guidance,
        seed=sampler.seed,
        sample_ids=keys,
    )
    return pixels(images, f"{keep} tokens", keys)


def pixels(images_BCHW: torch.Tensor, made_of: str, keys: Sequence[str]) -> np.ndarray:
    """What a decoder gave, [B, 3, H, W] in [-1, 1], as uint8 [B, H, W, 3]; raises FlextokError where it is not finite: that
    would be a black picture, which is measured like any other."""
    finite_B = torch.isfinite(images_BCHW).flatten(1).all(dim=1)
    if not finite_B.all():
        first = keys[int((~finite_B).nonzero()[0])]
        raise FlextokError(
            f"expected finite pictures of {made_of}, found NaN or infinity in {int((~finite_B).sum())} of "
            f"{len(keys)} images, the first of {first}; look at the tokenizer's training, or set evaluation.precision=float32"
        )
    return to_uint8(images_BCHW)
