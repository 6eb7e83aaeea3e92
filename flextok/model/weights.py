"""Weight files: safetensors read with suspicion, and the digest of what they hold.

Nothing in a file is ever executed, and every fault becomes one IntegrityError line.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flextok import storage
from flextok.digests import digest_arrays
from flextok.errors import IntegrityError, UsageError

# A header names each tensor in some 150 bytes: this is room for fifty thousand of them.
MAX_HEADER_BYTES = 8 << 20
PICKLE_MAGICS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_weights(url: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a safetensors file as float32 on the CPU, and its metadata strings.

    Raises UsageError where there is no file and IntegrityError where it is not a sound safetensors file or holds
    anything but finite floating-point numbers.
    """
    if not storage.exists(url):
        raise UsageError(f"expected a weight file at {url}, found none; give the folder of a checkpoint")
    with storage.as_local_file(url) as path:
        metadata = _read_metadata(path, url)
        try:
            raw = load_file(path)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise IntegrityError(f"expected whole safetensors in {url}, found {error}; fetch the file again") from None
    return {name: _sound(name, tensor, url) for name, tensor in raw.items()}, metadata


def _read_metadata(path: Path, url: str) -> dict[str, str]:
    with path.open("rb") as file:
        start, opening = file.read(8), file.read(1)
        # The length of a safetensors header may begin with the same bytes; its text begins with a brace.
        if start.startswith(PICKLE_MAGICS) and opening != b"{":
            raise IntegrityError(
                f"expected safetensors in {url}, found a pickle, which is never loaded; convert it first"
            )
        size = int.from_bytes(start, "little")
        if len(start) < 8 or size > MAX_HEADER_BYTES:
            raise IntegrityError(
                f"expected safetensors with a header of at most {MAX_HEADER_BYTES} bytes in {url}, "
                f"found {size if len(start) == 8 else 'a shorter file'}; this is no model of ours"
            )
        try:
            header = json.loads(opening + file.read(max(size - 1, 0)))
            metadata = header.get("__metadata__", {})
        except (ValueError, AttributeError, RecursionError):
            raise IntegrityError(f"expected a safetensors header in {url}, found something else") from None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise IntegrityError(f"expected metadata of strings in {url}, found something else")
    return metadata


def _sound(name: str, tensor: Tensor, url: str) -> Tensor:
    if not tensor.is_floating_point():
        raise IntegrityError(f"expected floating-point weights in {url}, found {tensor.dtype} in '{name}'")
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise IntegrityError(f"expected finite weights in {url}, found NaN or infinity in '{name}'")
    return tensor


def load_state(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Give `module` (which may be on the meta device) the tensors of `state`, exactly all of them.

    Files hold float32: a buffer of counts gets its own type back.

    Raises IntegrityError naming the first missing, extra or mis-shaped tensor.
    """
    expected = module.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing:
        raise IntegrityError(f"expected tensor '{missing[0]}' in {where}, found it missing{_more(missing)}")
    if extra:
        raise IntegrityError(f"expected {len(expected)} tensors in {where}, found also '{extra[0]}'{_more(extra)}")
    for name, tensor in expected.items():
        if tensor.shape != state[name].shape:
            shapes = f"{list(tensor.shape)} in {where}, found {list(state[name].shape)}"
            raise IntegrityError(f"expected '{name}' of shape {shapes}")
    kept = {
        name: tensor if expected[name].is_floating_point() else tensor.to(expected[name].dtype)
        for name, tensor in state.items()
    }
    module.load_state_dict(kept, assign=True)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def state_digest(kind: str, config: dict[str, Any], state: dict[str, Tensor]) -> str:
    """Digest of a checkpoint: its float32 tensors and canonical config."""
    arrays = {name: tensor.detach().float().cpu().numpy() for name, tensor in state.items()}
    return digest_arrays(arrays, {"kind": kind, "config": config})
