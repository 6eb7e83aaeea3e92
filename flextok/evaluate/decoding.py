"""The tokenizer of an evaluation: opening it, and tokens to 8-bit images with the settings of an evaluation."""

from collections.abc import Sequence

import numpy as np
import torch

from flextok.data.images import to_uint8
from flextok.evaluate.config import DecodingConfig
from flextok.model.decoders.config import SamplerConfig
from flextok.model.load import load_tokenizer
from flextok.model.nn.precision import autocast_dtype
from flextok.model.tokenizer import Tokenizer


def open_tokenizer(url: str, device: str, config: DecodingConfig) -> tuple[Tokenizer, str]:
    """The tokenizer at `url` in the precision of `config`, and the name of that precision for the protocol."""
    dtype = autocast_dtype(config.precision, torch.device(device)) or torch.float32
    return load_tokenizer(url, device, dtype), str(dtype).removeprefix("torch.")


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
