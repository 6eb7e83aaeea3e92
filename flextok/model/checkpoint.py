"""The one checkpoint format, for tokenizer, prior and stage 0 alike.

A checkpoint is a folder: model.safetensors (float32), config.yaml `{kind, config}`, history.parquet (training curves,
where there are any) and provenance.json, which is written last and makes the rest count.
"""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save
from torch import Tensor

from flextok import storage
from flextok.config import Config
from flextok.errors import IntegrityError, UsageError
from flextok.model.autoencoders.base import Latents, build_latents
from flextok.model.config import LatentsConfig
from flextok.model.tokenizer import Tokenizer
from flextok.model.weights import load_state, read_weights, state_digest
from flextok.provenance import make_provenance, read_provenance

Kind = Literal["tokenizer", "prior", "vae"]
WEIGHTS, CONFIG, HISTORY, PROVENANCE = "model.safetensors", "config.yaml", "history.parquet", "provenance.json"


@dataclass(frozen=True)
class SavedCheckpoint:
    """Where a checkpoint was put, and the digest of its content."""

    url: str
    digest: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: its kind, its config as plain values, its tensors, and the digest of both."""

    kind: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    digest: str
    url: str


def save_checkpoint(
    parent_url: str,
    kind: Kind,
    module_state: dict[str, Tensor],
    config: Config,
    provenance_inputs: list[dict[str, str]],
    recipe: Any,
    history: pa.Table | None = None,
) -> SavedCheckpoint:
    """Write `parent_url/<digest>/` and give back where it stands."""
    digest = state_digest(kind, config.model_dump(mode="json"), module_state)
    url = storage.join(parent_url, digest)
    return write_checkpoint(url, kind, module_state, config, provenance_inputs, recipe, history)


def write_checkpoint(
    url: str,
    kind: Kind,
    module_state: dict[str, Tensor],
    config: Config,
    provenance_inputs: list[dict[str, str]],
    recipe: Any,
    history: pa.Table | None = None,
) -> SavedCheckpoint:
    """Write a checkpoint's files into the folder `url` itself."""
    values = config.model_dump(mode="json")
    state = {name: _own(tensor.detach().float().cpu().contiguous()) for name, tensor in module_state.items()}
    digest = state_digest(kind, values, state)
    storage.write_bytes(storage.join(url, WEIGHTS), save(state))
    document = yaml.safe_dump({"kind": kind, "config": values}, sort_keys=False)
    storage.write_bytes(storage.join(url, CONFIG), document.encode())
    if history is not None:
        with storage.atomic_write(storage.join(url, HISTORY)) as file:
            pq.write_table(history, file)
    provenance = make_provenance(kind, digest, provenance_inputs, recipe, url)
    storage.write_json(storage.join(url, PROVENANCE), provenance)
    return SavedCheckpoint(url, digest)


def _own(tensor: Tensor) -> Tensor:
    """`tensor` in a storage of its own: safetensors refuses views into a shared one (a memory-mapped file)."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def is_checkpoint(url: str) -> bool:
    """Whether `url` is a folder in this format."""
    return storage.exists(storage.join(url, CONFIG))


def read_checkpoint(url: str) -> Checkpoint:
    """Everything in the folder `url`, its digest computed anew.

    Raises UsageError where there is no checkpoint, IntegrityError where its content is not what its record says.
    """
    if not is_checkpoint(url):
        raise UsageError(f"expected a checkpoint folder with {CONFIG} at {url}, found none")
    recorded = read_provenance(url)["digest"]
    try:
        document = yaml.safe_load(storage.read_bytes(storage.join(url, CONFIG)))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        document = None
    if (
        not isinstance(document, dict)
        or set(document) != {"kind", "config"}
        or not isinstance(document["config"], dict)
    ):
        raise IntegrityError(f"expected 'kind' and 'config' in {storage.join(url, CONFIG)}, found something else")
    state, _ = read_weights(storage.join(url, WEIGHTS))
    digest = state_digest(document["kind"], document["config"], state)
    if digest != recorded:
        raise IntegrityError(
            f"expected content with digest {recorded[:12]} in {url}, found {digest[:12]}; restore or make it again"
        )
    return Checkpoint(document["kind"], document["config"], state, digest, url)


def read_kind(url: str, kind: Kind) -> Checkpoint:
    """`read_checkpoint`, refusing one of another kind."""
    checkpoint = read_checkpoint(url)
    if checkpoint.kind != kind:
        raise UsageError(f"expected a {kind} checkpoint at {url}, found a {checkpoint.kind}")
    return checkpoint


def load_tokenizer(path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Tokenizer:
    """The tokenizer at `path`, ready to use: a checkpoint of ours, or the official layout.

    The official layout is a model.safetensors file with its config in the metadata, or a Hub folder with config.json.
    `dtype` is float32 (exact) or bfloat16 (trunks in bfloat16; norms, quantizer and stage 0 stay in float32).
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"expected dtype float32 or bfloat16, found {dtype}")
    path = str(path)
    if is_checkpoint(path):
        checkpoint = read_kind(path, "tokenizer")
        tokenizer = Tokenizer.from_values(checkpoint.config, checkpoint.state, where=path, digest=checkpoint.digest)
    else:
        from flextok.model.official.checkpoint import read_official

        tokenizer = read_official(path)
    return tokenizer.to(device).prepare(dtype)


def load_latents(path: str, device: str | torch.device = "cpu") -> Latents:
    """The stage 0 of a `vae` checkpoint, frozen and in eval mode."""
    checkpoint = read_kind(str(path), "vae")
    config = latents_config(checkpoint.config, storage.join(str(path), CONFIG))
    with torch.device("meta"):
        latents = build_latents(config)
    load_state(latents, checkpoint.state, str(path))
    return latents.to(device).eval().requires_grad_(False)


def latents_config(values: dict[str, Any], where: str) -> LatentsConfig:
    """Plain values as the config of a stage 0; raises UsageError with one line."""
    try:
        return TypeAdapter(LatentsConfig).validate_python(values)
    except ValidationError as error:
        fault = error.errors()[0]
        raise UsageError(f"{where}: '{'.'.join(map(str, fault['loc']))}': {fault['msg']}") from None
