"""What a text encoder is: captions in, features of their tokens out; its weights are never trained.

Shapes: B captions, T tokens of the longest of them.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flextok.errors import UsageError
from flextok.model.transformers_package import import_transformers
from flextok.model.weights import state_digest
from flextok.registry import Register

INSTALL_OR_HASH = "run `pip install transformers==5.24.0`, or take the text encoder hashed-words"
MAX_TOKENS = 120
"""Tokens of a caption that are read; what follows is left out."""


@dataclass(frozen=True)
class TextFeatures:
    """Features of captions: `values` [B,T,width] float, `mask` [B,T] bool, false at padding."""

    values: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> "TextFeatures":
        """The same features on `device`."""
        return TextFeatures(self.values.to(device), self.mask.to(device))


class TextEncoder(Protocol):
    """Turns captions into features; never trained."""

    width: int

    @property
    def digest(self) -> str:
        """Hash of all that decides the features: weights, tokenizer, tokens that are read."""
        ...

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Features of each caption, padded to the longest; those of a caption do not depend on the others."""
        ...


TEXT_ENCODERS: Register[Callable[[str, torch.device], TextEncoder]] = Register(
    "text encoder", home="flextok.model.text"
)
"""By kind, what makes an encoder of the argument in its name and a device."""


def text_encoder(name: str, device: torch.device) -> TextEncoder:
    """The encoder called `name` ("hashed-words", "minilm", "t5:<hub id or folder>", "clip:<hub id or folder>") on `device`.

    Raises UsageError where there is none of that kind, its package is missing or its files cannot be read.
    """
    kind, _, argument = name.partition(":")
    return TEXT_ENCODERS[kind.replace("-", "_")](argument, device)


class FrozenTransformer:
    """The last hidden states of a model of transformers, in float32.

    `model(input_ids, attention_mask)` and `tokenizer` are transformers' own; captions are cut to `max_tokens`.
    """

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int, device: torch.device):
        self._model = model.float().eval().requires_grad_(False).to(device)
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self.width = int(model.config.hidden_size)

    @property
    def digest(self) -> str:
        """See `TextEncoder.digest`."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        state = {name: tensor.cpu() for name, tensor in self._model.state_dict().items()}
        parts = json.loads(self._tokenizer.backend_tokenizer.to_str())
        # What was cut and padded last is kept beside them.
        tokenizer = {name: part for name, part in parts.items() if name not in ("truncation", "padding")}
        return state_digest("text", {"tokenizer": tokenizer, "max_tokens": self._max_tokens}, state)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """See `TextEncoder.encode`."""
        # Halves of surrogate pairs, which a damaged text or an argument of a shell may hold, are no UTF-8.
        whole = [text.encode("utf-8", "replace").decode() for text in texts]
        batch = self._tokenizer(
            whole,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self._model.device)
        found = self._model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return TextFeatures(found.last_hidden_state, batch.attention_mask.bool())


def load_frozen(model_class: str, model_types: Sequence[str], model_id: str, name: str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or Hub id, in float32; `name` is what messages call the encoder.

    Only safetensors are read and no code of the folder is run. Raises UsageError where transformers is missing, or
    what is there is no whole model of one of the `model_types`.
    """
    if not model_id:
        raise UsageError(f"expected a folder or Hub id, as in {name}:FOLDER, found none")
    transformers = import_transformers(f"the text encoder {name}", INSTALL_OR_HASH)
    what = f"expected a {name} model with its tokenizer in {model_id}"
    try:
        found = transformers.AutoConfig.from_pretrained(model_id).model_type
        if found not in model_types:
            raise UsageError(f"{what}, found one of type {found}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_id)
        model, report = getattr(transformers, model_class).from_pretrained(
            model_id, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        tokenizer.backend_tokenizer  # noqa: B018 - one without is of no use
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever transformers makes of what is there
        raise UsageError(f"{what}, found: {' '.join(str(error).split())[:300]}") from None
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers would go on with random numbers in their place.
        raise UsageError(f"{what}, found no weights for {', '.join(missing[:3])}")
    return model, tokenizer
