"""Settings that have moved: where an old key is found, in a profile, in `--set` or in a record, its value goes to the new one."""

from typing import Any

from pydantic import BaseModel

from flextok.config import has_key

# What only training reads left the model's settings, which are a checkpoint's identity.
MOVED = {
    "tokenizer.model.keep_mode": "tokenizer.train.keep_mode",
    "tokenizer.model.condition_dropout": "tokenizer.train.condition_dropout",
    "tokenizer.model.sigma": "tokenizer.train.decoder.sigma",
    "tokenizer.model.mode_scale": "tokenizer.train.decoder.mode_scale",
    "tokenizer.model.pure_noise_steps": "tokenizer.train.decoder.pure_noise_steps",
    "tokenizer.model.pure_noise_share": "tokenizer.train.decoder.pure_noise_share",
    "prior.model.condition_dropout": "prior.train.condition_dropout",
    "prior.model.dropout": "prior.train.dropout",
    "latents.model.latent_noise": "latents.train.autoencoder.latent_noise",
}


def move_keys(values: dict[str, Any], model: type[BaseModel], replace: bool = False) -> list[tuple[str, str]]:
    """Move old keys in nested `values` for `model`, in place; gives the (old, new) keys of those that were there.

    A value that the new key already has is kept, and the old key left for the check of `model` to refuse; unless `replace`.
    """
    found = []
    for old, new in MOVED.items():
        if has_key(model, old) or not has_key(model, new):
            continue
        *path, last = old.split(".")
        section = _section(values, path)
        if section is None or last not in section:
            continue
        *new_path, new_last = new.split(".")
        holder = _section(values, new_path, make=True)
        if holder is None or (new_last in holder and not replace):
            continue
        holder[new_last] = section.pop(last)
        found.append((old, new))
    return found


def _section(values: dict[str, Any], path: list[str], make: bool = False) -> dict[str, Any] | None:
    for name in path:
        if make and values.get(name) is None:
            values[name] = {}
        inner = values.get(name)
        if not isinstance(inner, dict):
            return None
        values = inner
    return values
