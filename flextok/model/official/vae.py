"""The autoencoder of published checkpoints: the architecture of an AutoencoderKL read from its tensors."""

import json
import re
from typing import Any

from torch import Tensor

from flextok import storage
from flextok.errors import FlextokError, IntegrityError

# diffusers' own default where a config names none, and the norm groups of the published autoencoder
DEFAULT_SCALING = 0.18215
DEFAULT_GROUPS = 32
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# The one architecture read here; a value that a diffusers config names otherwise is refused.
FIXED = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "in_channels": 3, "out_channels": 3,
    "latents_mean": None, "latents_std": None,
}  # fmt: skip


def convert_vae(
    arguments: dict[str, Any], state: dict[str, Tensor], folder: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of the autoencoder, from its arguments, its tensors and the diffusers folder beside them, if any."""
    if "encoder.conv_in.weight" not in state or "encoder.conv_out.weight" not in state:
        raise IntegrityError(
            "expected tensors of the autoencoder under 'vae.vae.', found some missing; fetch the file again"
        )
    source = _diffusers_config(arguments.get("hf_hub_path"), folder)
    channels = _block_channels(state)
    state = {_modern_name(name): _modern_shape(name, tensor) for name, tensor in state.items()}
    settings = {
        "kind": "autoencoder_kl",
        "block_out_channels": channels,
        "layers_per_block": sum(
            1 for name in state if re.fullmatch(r"encoder\.down_blocks\.0\.resnets\.\d+\.conv1\.weight", name)
        ),
        "latent_channels": state["encoder.conv_out.weight"].shape[0] // 2,
        "norm_num_groups": _norm_groups(source, channels),
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "mid_block_add_attention": any(name.startswith("encoder.mid_block.attentions.") for name in state),
        "scaling_factor": _scaling_factor(arguments, source),
        "sample_posterior": arguments.get("sample_posterior", True),
    }
    return settings, state


def _block_channels(state: dict[str, Tensor]) -> tuple[int, ...]:
    channels = []
    while (name := f"encoder.down_blocks.{len(channels)}.resnets.0.conv1.weight") in state:
        channels.append(state[name].shape[0])
    if not channels or len(channels) > 8:
        raise IntegrityError(f"expected 1 to 8 encoder blocks in the autoencoder, found {len(channels)}")
    return tuple(channels)


def _diffusers_config(hub_path: Any, folder: str) -> dict[str, Any] | None:
    """config.json of the diffusers folder that the checkpoint names, or of `vae`, inside the checkpoint's own folder."""
    names = [hub_path] if isinstance(hub_path, str) and _stays_inside(hub_path) else []
    urls = [storage.join(folder, name, "config.json") for name in (*names, "vae")]
    url = next((url for url in urls if storage.exists(url)), None)
    if url is None:
        return None
    raw = storage.read_bytes(url)
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise IntegrityError(f"expected a diffusers config in {url}, found something else")
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise FlextokError(f"expected {key} {value!r} in {url}, found {config[key]!r}; not supported")
    return config


def _stays_inside(path: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)*", path) is not None and ".." not in path.split("/")


def _norm_groups(source: dict[str, Any] | None, channels: tuple[int, ...]) -> int:
    if source is not None:
        return source.get("norm_num_groups", DEFAULT_GROUPS)
    if any(count % DEFAULT_GROUPS for count in channels):
        raise FlextokError(
            f"expected the autoencoder's diffusers config beside the weights, since channels {list(channels)} do not "
            f"take the usual {DEFAULT_GROUPS} norm groups, found none; put its folder there under the name in 'hf_hub_path'"
        )
    return DEFAULT_GROUPS


def _scaling_factor(arguments: dict[str, Any], source: dict[str, Any] | None) -> float:
    if arguments.get("scaling_factor") is not None:
        return arguments["scaling_factor"]
    if source is not None:
        return source.get("scaling_factor", DEFAULT_SCALING)
    if arguments.get("hf_hub_path") is None:
        return DEFAULT_SCALING
    raise FlextokError(
        f"expected a scaling_factor in the checkpoint, or the config of {arguments['hf_hub_path']!r} in a folder of that "
        "name beside the weights, found neither; put that folder there"
    )


def _modern_name(name: str) -> str:
    """Attention layers under the names diffusers has given them since 0.17."""
    head, dot, tail = name.rpartition(".")
    stem, _, last = head.rpartition(".")
    return f"{stem}.{OLD_ATTENTION[last]}{dot}{tail}" if ".attentions." in name and last in OLD_ATTENTION else name


def _modern_shape(name: str, tensor: Tensor) -> Tensor:
    """Attention layers kept as 1x1 convolutions, as matrices."""
    return tensor[:, :, 0, 0] if ".attentions." in name and tensor.dim() == 4 and tensor.shape[2:] == (1, 1) else tensor
