"""The precision of an evaluation's tokenizer, and tokens to 8-bit images with the settings of an evaluation."""

from collections.abc import Sequence

import numpy as np
import torch

from flextok.data.images import to_uint8
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
    return to_uint8(images)
