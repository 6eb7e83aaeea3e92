"""Published FlexTok checkpoints: read with suspicion, turned into our config and tensor names.

A published checkpoint is model.safetensors, with its config as Python literals in the metadata or as config.json beside
it (a Hub folder). Only names and numbers are taken from it; nothing is imported or executed.
"""

import ast
import json
import posixpath
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from flextok import storage
from flextok.config import Config, parse_config
from flextok.errors import FlextokError, IntegrityError, UsageError
from flextok.model.checkpoint import SavedCheckpoint, write_checkpoint
from flextok.model.config import KeepMode, TokenizerConfig
from flextok.model.official.layout import Modules, convert_decoder, convert_encoder
from flextok.model.official.schema import check_arguments, check_targets
from flextok.model.official.vae import convert_vae
from flextok.model.tokenizer import Tokenizer
from flextok.model.weights import read_weights, state_digest
from flextok.runtime.storage_errors import storage_errors

WEIGHTS, HUB_CONFIG = "model.safetensors", "config.json"
ENTRIES = ("vae", "encoder", "decoder", "regularizer")
OPTIONAL_ENTRIES = ("flow_matching_noise_module", "pipeline")
# Published configs are far below this; more than it is not given to a parser.
MAX_CONFIG_CHARS = 100_000


class PublishedTraining(Config):
    """How a published tokenizer was trained. Nothing here reads it, but the digest of such a checkpoint covers it."""

    keep_mode: KeepMode
    condition_dropout: float = Field(ge=0, le=1)
    sigma: Literal["uniform", "logit_normal"]
    mode_scale: float
    pure_noise_steps: int = 0
    pure_noise_share: float = 0.0


@dataclass(frozen=True)
class Published:
    """A published checkpoint as read: our config and our tensors, and how it was trained."""

    config: TokenizerConfig
    training: PublishedTraining
    state: dict[str, Tensor]
    url: str

    @property
    def values(self) -> dict[str, Any]:
        """What its config.yaml holds and its digest covers."""
        return {**self.config.model_dump(mode="json"), **self.training.model_dump(mode="json")}

    @property
    def tokenizer(self) -> Tokenizer:
        """The model, in eval mode."""
        digest = state_digest("tokenizer", self.values, self.state)
        return Tokenizer.from_state(self.config, self.state, self.url, digest)


def is_official(path: str) -> bool:
    """Whether `path` is a weight file, or a folder with one."""
    return path.endswith(".safetensors") or storage.exists(storage.join(path, WEIGHTS))


def read_official(path: str) -> Published:
    """A published checkpoint: its file, or the folder that holds it.

    Raises UsageError where there is none, IntegrityError where it is not whole, FlextokError where it asks for
    something that this model does not compute.
    """
    if not is_official(path):
        kinds = f"a checkpoint folder (config.yaml), a Hub folder ({WEIGHTS}) or a .safetensors file"
        raise UsageError(f"expected {kinds} at {path}, found none")
    file_url = path if path.endswith(".safetensors") else storage.join(path, WEIGHTS)
    folder = posixpath.dirname(file_url) or "."
    state, metadata = read_weights(file_url)
    hub_url = storage.join(folder, HUB_CONFIG)
    if storage.exists(hub_url) and (file_url != path or "encoder" not in metadata):
        values = _hub_config(hub_url)
    else:
        values = _metadata_config(metadata, file_url)
    check_targets(values, file_url)

    modules = Modules(values, state)
    encoder, encoder_state = convert_encoder(modules)
    decoder, decoder_state = convert_decoder(modules)
    latents, latents_state = convert_vae(values["vae"], modules.take("vae.vae."), folder)
    modules.check_all_used()
    # a longer table than there are registers is cropped, as positions are absolute
    decoder_state["register_positions"] = decoder_state["register_positions"][: encoder["registers"]]
    if encoder.pop("grid") != (grid := decoder.pop("grid")) or encoder["patch_size"] != decoder.pop("patch_size"):
        raise FlextokError(f"expected encoder and decoder of {file_url} to cut and place patches alike")
    check_arguments("regularizer", "FSQ", values["regularizer"])
    noise = values.get("flow_matching_noise_module") or {}
    training = {
        "keep_mode": decoder.pop("keep_mode"),
        "condition_dropout": decoder.pop("condition_dropout"),
        "sigma": "logit_normal" if noise.get("ln", True) else "uniform",
        "mode_scale": noise.get("mode_scale", 0.0),
    }
    factor = 2 ** (len(latents["block_out_channels"]) - 1)
    config = {
        **encoder,
        **decoder,
        "latents": latents,
        "image_size": min(grid) * encoder["patch_size"] * factor,
        "posemb_grid": None if grid[0] == grid[1] else grid,
        "quantizer": {"kind": "fsq", "levels": values["regularizer"].get("levels")},
    }
    renamed = {
        **{f"latents.vae.{name}": tensor for name, tensor in latents_state.items()},
        **{f"encoder.{name}": tensor for name, tensor in encoder_state.items()},
        **{f"decoder.{name}": tensor for name, tensor in decoder_state.items()},
    }
    return Published(
        parse_config(TokenizerConfig, config, file_url),
        parse_config(PublishedTraining, training, file_url),
        renamed,
        file_url,
    )


def parse_literal(text: str, where: str) -> Any:
    """A Python literal (what str() of a nested dict gives) as values; raises IntegrityError for anything else."""
    if len(text) > MAX_CONFIG_CHARS:
        raise IntegrityError(f"expected at most {MAX_CONFIG_CHARS} characters of config in {where}, found {len(text)}")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise IntegrityError(f"expected a Python literal in {where}, found something else") from None


def _metadata_config(metadata: dict[str, str], url: str) -> dict[str, Any]:
    if sum(map(len, metadata.values())) > MAX_CONFIG_CHARS:
        total = sum(map(len, metadata.values()))
        raise IntegrityError(f"expected at most {MAX_CONFIG_CHARS} characters of metadata in {url}, found {total}")
    names = [name for name in (*ENTRIES, *OPTIONAL_ENTRIES) if name in metadata]
    entries = {name: parse_literal(metadata[name], f"'{name}' of {url}") for name in names}
    if "_target_" in metadata:  # a name, not a literal
        entries["_target_"] = metadata["_target_"]
    return _entries(entries, f"metadata of {url}")


def _hub_config(url: str) -> dict[str, Any]:
    raw = storage.read_bytes(url)
    if len(raw) > MAX_CONFIG_CHARS:
        raise IntegrityError(f"expected at most {MAX_CONFIG_CHARS} bytes of config in {url}, found {len(raw)}")
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        raise IntegrityError(f"expected JSON in {url}, found something else") from None
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        values = values["config"]  # under the name of the constructor's one argument
    return _entries(values, url)


def _entries(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise IntegrityError(f"expected config entries by name in {where}, found {type(values).__name__}")
    for name in ENTRIES:
        if not isinstance(values.get(name), dict):
            found = "none" if name not in values else type(values[name]).__name__
            raise IntegrityError(f"expected a config entry '{name}' in the {where}, found {found}; is this FlexTok?")
    noise = values.get("flow_matching_noise_module")
    if noise is not None and not isinstance(noise, dict):
        raise IntegrityError(
            f"expected 'flow_matching_noise_module' as a dict in {where}, found {type(noise).__name__}"
        )
    return values


@storage_errors("import {source} into {destination}")
def import_checkpoint(source: str, destination: str) -> SavedCheckpoint:
    """Convert a published checkpoint into ours, its files directly in the folder `destination`."""
    published = read_official(source)
    file_url = source if source.endswith(".safetensors") else storage.join(source, WEIGHTS)
    origin = {"kind": "official", "digest": storage.sha256_file(file_url), "uri": storage.absolute(source)}
    recipe = {"import": "official"}
    return write_checkpoint(
        destination, "tokenizer", published.tokenizer.state_dict(), published.values, [origin], recipe
    )
