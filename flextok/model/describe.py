"""What a checkpoint is, in plain values for a person or a program."""

from typing import Any

from torch import Tensor

from flextok.model.checkpoint import is_checkpoint, read_checkpoint
from flextok.model.load import tokenizer_of
from flextok.model.official.checkpoint import read_official
from flextok.model.tokenizer import Tokenizer


def describe_checkpoint(url: str) -> dict[str, Any]:
    """Kind, layout, digest, config and parameter counts by part; for a tokenizer also its sizes and vocabulary.

    Reads ours (tokenizer, prior, vae) and the published layout; raises what their readers raise.
    """
    if not is_checkpoint(url):
        return {"kind": "tokenizer", "layout": "official", **_describe_tokenizer(read_official(url).tokenizer)}
    checkpoint = read_checkpoint(url)
    described = {"kind": checkpoint.kind, "layout": "flextok"}
    if checkpoint.kind == "tokenizer":
        return {**described, **_describe_tokenizer(tokenizer_of(checkpoint))}
    return {
        **described,
        "digest": checkpoint.digest,
        "parameters": parameter_counts(checkpoint.state),
        "config": checkpoint.config,
    }


def parameter_counts(state: dict[str, Tensor]) -> dict[str, int]:
    """Numbers held by each top-level part of a state dict, and their `total`."""
    counts: dict[str, int] = {}
    for name, tensor in state.items():
        part = name.partition(".")[0]
        counts[part] = counts.get(part, 0) + tensor.numel()
    return {**counts, "total": sum(counts.values())}


def _describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    channels, height, width = tokenizer.latent_shape
    factor = tokenizer.latents.factor
    return {
        "digest": tokenizer.digest,
        "image_size": [height * factor, width * factor],
        "latent_shape": [channels, height, width],
        "num_tokens": tokenizer.num_tokens,
        "vocab_size": tokenizer.vocab_size,
        "codebooks": tokenizer.codebooks,
        "parameters": parameter_counts(tokenizer.state_dict()),
        "config": tokenizer.config.model_dump(mode="json"),
    }
