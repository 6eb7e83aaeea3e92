"""The one checkpoint format, for tokenizer, prior and autoencoder (kind vae) alike.

A checkpoint is a folder: model.safetensors (float32), config.yaml `{kind, config}`, history.parquet (training curves,
where there are any) and provenance.json, which is written last and makes the rest count.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors.torch import save
from torch import Tensor

from flextok import storage
from flextok.config import Config
from flextok.errors import IntegrityError, UsageError
from flextok.model.weights import read_weights, state_digest
from flextok.provenance import make_provenance, read_provenance

Kind = Literal["tokenizer", "prior", "vae"]
TRAINING_FACTS = "flextok.training"
"""Key in the metadata of a history: JSON of what its training took and which step is published, for the provenance."""
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
    """Write `parent_url/<digest>/` and give back where it is."""
    digest = state_digest(kind, config.model_dump(mode="json"), module_state)
    url = storage.join(parent_url, digest)
    return write_checkpoint(url, kind, module_state, config, provenance_inputs, recipe, history)


def write_checkpoint(
    url: str,
    kind: Kind,
    module_state: dict[str, Tensor],
    config: Config | dict[str, Any],
    provenance_inputs: list[dict[str, str]],
    recipe: Any,
    history: pa.Table | None = None,
) -> SavedCheckpoint:
    """Write a checkpoint's files into the folder `url` itself."""
    values = config if isinstance(config, dict) else config.model_dump(mode="json")
    state = {name: _own(tensor.detach().float().cpu().contiguous()) for name, tensor in module_state.items()}
    digest = state_digest(kind, values, state)
    storage.write_bytes(storage.join(url, WEIGHTS), save(state))
    document = yaml.safe_dump({"kind": kind, "config": values}, sort_keys=False)
    storage.write_bytes(storage.join(url, CONFIG), document.encode())
    if history is not None:
        with storage.atomic_write(storage.join(url, HISTORY)) as file:
            pq.write_table(history, file)
    provenance = make_provenance(kind, digest, provenance_inputs, recipe, url)
    facts = (history.schema.metadata or {}).get(TRAINING_FACTS.encode()) if history is not None else None
    if facts is not None:
        provenance["training"] = json.loads(facts)
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
    kind, config = read_config(url)
    state, _ = read_weights(storage.join(url, WEIGHTS))
    digest = state_digest(kind, config, state)
    if digest != recorded:
        raise IntegrityError(
            f"expected content with digest {recorded[:12]} in {url}, found {digest[:12]}; restore or make it again"
        )
    return Checkpoint(kind, config, state, digest, url)


def read_config(url: str) -> tuple[str, dict[str, Any]]:
    """Kind and config, as plain values, of the checkpoint at `url`; raises IntegrityError where they cannot be read."""
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
    return document["kind"], document["config"]


def read_kind(url: str, kind: Kind) -> Checkpoint:
    """`read_checkpoint`, refusing one of another kind."""
    checkpoint = read_checkpoint(url)
    if checkpoint.kind != kind:
        raise UsageError(f"expected a {kind} checkpoint at {url}, found a {checkpoint.kind}")
    return checkpoint
