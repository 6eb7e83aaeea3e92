"""A tokenizer's training begun from the weights of another tokenizer, parts of which may be frozen.

Registers are cut to the first ones, or grown by new ones; tables of patch positions are made to fit the image size. Of a
grown or cut tokenizer the first tokens stay what they were, as no register of the encoder sees a later one. What its decoder
makes of them is near at best: it attends to the mask tokens in the places of all others.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from flextok.errors import UsageError
from flextok.model.config import TokenizerConfig
from flextok.model.nn.patching import fitted
from flextok.model.tokenizer import Tokenizer
from flextok.model.weights import state_digest

BY_REGISTER = ("encoder.registers", "decoder.register_positions")
TABLES = ("encoder.patches.positions", "decoder.patches.positions")
MAY_DIFFER = {"registers", "image_size", "posemb_grid", "posemb_scaling"}
SHOWN_DIFFERENCES = 3


@torch.no_grad()
def take_over(tokenizer: Tokenizer, source: Tokenizer, where: str) -> None:
    """Give `tokenizer`, whose autoencoder is there already, the other weights of `source`, which lies at `where`.

    What `tokenizer` has beside them (the projector of an alignment) stays. Raises UsageError where more differs than
    the numbers of registers and patches.
    """
    _require_alike(tokenizer.config, source.config, where)
    _require_same_autoencoder(tokenizer, source, where)
    goals = tokenizer.state_dict()
    for name, given in _without_autoencoder(source.state_dict()).items():
        goal = goals[name]
        if name in TABLES:
            goal.copy_(fitted(given, (goal.shape[0], goal.shape[1]), tokenizer.config.posemb_scaling))
        elif name in BY_REGISTER:
            count = min(len(goal), len(given))
            goal[:count] = given[:count]
        elif goal.shape != given.shape:
            raise UsageError(
                f"expected '{name}' of shape {list(goal.shape)} for tokenizer.init_from, found {list(given.shape)} in {where}; "
                "this kind takes no other registers or image size"
            )
        else:
            goal.copy_(given)


def freeze(tokenizer: Tokenizer, source: Tokenizer, parts: Collection[str], where: str) -> None:
    """Let no training change the weights of `parts` that came from `source`.

    Raises UsageError where a part has new registers, which would stay random, and where nothing is left to learn.
    """
    if tokenizer.num_tokens > source.num_tokens and {"encoder", "decoder"} & set(parts):
        raise UsageError(
            f"expected at most the {source.num_tokens} registers of {where} with encoder or decoder in "
            f"tokenizer.init_from.freeze, found {tokenizer.num_tokens}; new ones have to learn in both"
        )
    taken = source.state_dict().keys()
    for name, parameter in tokenizer.named_parameters():
        if name in taken and name.partition(".")[0] in parts:
            parameter.requires_grad_(False)
    if not any(True for _ in tokenizer.trainable_parameters()):
        raise UsageError(
            f"expected something left to learn by tokenizer.init_from.freeze, found {', '.join(parts)} frozen"
        )


def _require_alike(wanted: TokenizerConfig, given: TokenizerConfig, where: str) -> None:
    ours, theirs = (_leaves(config.model_dump(mode="json", exclude=MAY_DIFFER)) for config in (wanted, given))
    names = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    if names:
        shown = ", ".join(f"{name} {ours.get(name)}" for name in names[:SHOWN_DIFFERENCES])
        found = ", ".join(f"{theirs.get(name)}" for name in names[:SHOWN_DIFFERENCES])
        raise UsageError(
            f"expected a tokenizer with {shown} as in the recipe for tokenizer.init_from, found {found} in {where}; only "
            "registers and image size may differ"
        )


def _require_same_autoencoder(wanted: Tokenizer, given: Tokenizer, where: str) -> None:
    ours, theirs = (
        state_digest("vae", model.config.latents.model_dump(mode="json"), model.latents.state_dict())
        for model in (wanted, given)
    )
    if ours != theirs:
        raise UsageError(
            f"expected a tokenizer on the latents of autoencoder {ours[:12]} for tokenizer.init_from, found {theirs[:12]} in "
            f"{where}; take its autoencoder"
        )


def _without_autoencoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("latents.")}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
