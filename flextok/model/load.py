"""Models from checkpoints: tokenizer, autoencoder and prior, and what of a tokenizer can be known without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flextok import storage
from flextok.aliases import resolve_alias
from flextok.config import parse_config, parse_member
from flextok.errors import UsageError
from flextok.model.autoencoders.base import Autoencoder
from flextok.model.autoencoders.config import AUTOENCODERS, AutoencoderConfig
from flextok.model.checkpoint import CONFIG, Checkpoint, is_checkpoint, read_config, read_kind
from flextok.model.config import TokenizerConfig
from flextok.model.nn.outline import outlined
from flextok.model.official.checkpoint import read_official
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.tokenizer import Tokenizer
from flextok.model.weights import load_state
from flextok.provenance import read_provenance

# Settings of the training alone, which earlier checkpoints hold among those of the model. Their digest covers them still.
FORMER_TOKENIZER_KEYS = (
    "keep_mode",
    "condition_dropout",
    "pure_noise_steps",
    "pure_noise_share",
    "sigma",
    "mode_scale",
)
FORMER_CONV_KEYS = ("latent_noise",)
FORMER_PRIOR_KEYS = ("dropout", "condition_dropout")


@dataclass(frozen=True)
class TokenizerSpec:
    """What the driver of a job must know of a tokenizer; only its workers hold the weights."""

    url: str
    digest: str
    image_size: int
    num_tokens: int
    """L, the longest token sequence of an image."""
    vocab_size: int
    """Ids lie in 0..vocab_size-1; 0 where tokens are numbers (a continuous quantizer)."""
    codebooks: int
    """C, ids for each position."""


def load_tokenizer(path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Tokenizer:
    """The tokenizer at `path`, ready to use: a checkpoint of ours (its folder, or an alias of it), or the official layout.

    The official layout is a model.safetensors file with its config in the metadata, or a Hub folder with config.json.
    `dtype` is float32 (exact) or bfloat16 (trunks in bfloat16; norms, quantizer and autoencoder stay in float32).
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"expected dtype float32 or bfloat16, found {dtype}")
    path = resolve_alias(str(path))
    tokenizer = tokenizer_of(read_kind(path, "tokenizer")) if is_checkpoint(path) else read_official(path).tokenizer
    return tokenizer.to(device).prepare(dtype)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint that was read, in eval mode; raises UsageError where its config is none of ours."""
    config = tokenizer_config(checkpoint.config, checkpoint.url)
    return Tokenizer.from_state(config, checkpoint.state, checkpoint.url, checkpoint.digest)


def tokenizer_spec(url: str) -> TokenizerSpec:
    """The spec of the tokenizer at `url`; reads the weights only where nothing else says their digest.

    Its `url` is no alias, and means the same in every process.
    """
    url = resolve_alias(url)
    url = storage.absolute(url) if storage.exists(url) else url
    tokenizer = tokenizer_outline(url)
    return spec_of(url, tokenizer.digest, tokenizer)


def tokenizer_outline(url: str) -> Tokenizer:
    """The tokenizer at `url` for those that do not compute with it: of a checkpoint of ours no weights are read."""
    if not is_checkpoint(url):
        return load_tokenizer(url)
    values, digest = _config_of(url, "tokenizer")
    return Tokenizer.outline(tokenizer_config(values, storage.join(url, CONFIG)), digest)


def prior_outline(url: str) -> tuple[PriorConfig, str]:
    """Config and digest of the prior at `url`; no weights are read."""
    values, digest = _config_of(url, "prior")
    return _prior_config(values, url), digest


def _config_of(url: str, kind: str) -> tuple[dict[str, Any], str]:
    """Plain values and digest of a checkpoint; UsageError where it is of another kind."""
    if not is_checkpoint(url):
        raise UsageError(f"expected a checkpoint folder with {CONFIG} at {url}, found none")
    found, values = read_config(url)
    if found != kind:
        raise UsageError(f"expected a {kind} checkpoint at {url}, found a {found}; give the folder of a {kind}")
    return values, read_provenance(url)["digest"]


def spec_of(url: str, digest: str, tokenizer: Tokenizer) -> TokenizerSpec:
    """The spec of a tokenizer that is at hand."""
    return TokenizerSpec(
        url, digest, tokenizer.config.image_size, tokenizer.num_tokens, tokenizer.vocab_size, tokenizer.codebooks
    )


def load_autoencoder(path: str, device: str | torch.device = "cpu") -> Autoencoder:
    """The autoencoder of a `vae` checkpoint, frozen and in eval mode."""
    checkpoint = read_kind(str(path), "vae")
    config = autoencoder_config(checkpoint.config, storage.join(str(path), CONFIG))
    with outlined():
        autoencoder = config.build()
    load_state(autoencoder, checkpoint.state, str(path))
    return autoencoder.to(device).eval().requires_grad_(False)


def load_prior(path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Prior:
    """The prior stored at `path`, in evaluation mode; raises UsageError when something else is stored there."""
    checkpoint = read_kind(resolve_alias(str(path)), "prior")
    config = _prior_config(checkpoint.config, checkpoint.url)
    prior = Prior.create(config, seed=0)
    load_state(prior, checkpoint.state, checkpoint.url)
    prior.digest = checkpoint.digest
    return prior.to(device, dtype).eval()


def _prior_config(values: Mapping[str, Any], url: str) -> PriorConfig:
    return parse_config(PriorConfig, _without(values, FORMER_PRIOR_KEYS), storage.join(url, CONFIG))


def tokenizer_config(values: Mapping[str, Any], where: str) -> TokenizerConfig:
    """Plain values of a checkpoint, earlier ones too, as the config of a tokenizer; raises UsageError with one line."""
    values = _without(values, FORMER_TOKENIZER_KEYS)
    if isinstance(values.get("latents"), dict):
        values["latents"] = _autoencoder_values(values["latents"])
    return parse_config(TokenizerConfig, values, where)


def autoencoder_config(values: Mapping[str, Any], where: str) -> AutoencoderConfig:
    """Plain values of a checkpoint, earlier ones too, as the config of an autoencoder; raises UsageError with one line."""
    return parse_member(AUTOENCODERS, _autoencoder_values(values), where)


def _autoencoder_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return _without(values, FORMER_CONV_KEYS if values.get("kind") == "conv" else ())


def _without(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in keys}
