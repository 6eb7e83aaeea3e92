"""Frozen text encoders, found by name: what a caption-conditioned prior attends to."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flextok.errors import UsageError

MAX_TOKENS = 120


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

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Features of each caption, padded to the longest; an empty caption has no features at all."""
        ...


class HashedWords:
    """A stand-in that needs no download: each word is a fixed random vector drawn from its hash, plus its place."""

    width = 64
    max_words = 32

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """One feature a word, lower case and without punctuation."""
        words = [_words(text)[: self.max_words] for text in texts]
        values = np.zeros((len(texts), max(map(len, words), default=0), self.width), dtype=np.float32)
        mask = np.zeros(values.shape[:2], dtype=bool)
        for row, row_words in enumerate(words):
            for place, word in enumerate(row_words):
                values[row, place] = _word_vector(word, self.width) + _place_vector(place, self.width)
            mask[row, : len(row_words)] = True
        return TextFeatures(torch.from_numpy(values), torch.from_numpy(mask))


class T5Encoder:
    """The encoder of a T5 model from the Hub or a local folder, through transformers."""

    def __init__(self, model_id: str, device: torch.device):
        try:
            from transformers import AutoTokenizer, T5EncoderModel  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UsageError(
                f"expected the package transformers for the text encoder t5:{model_id}, found none; "
                "run `pip install transformers sentencepiece`, or take the text encoder hashed-words"
            ) from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model_id)
            self._model = T5EncoderModel.from_pretrained(model_id, use_safetensors=True)
        except OSError as error:
            first_line = str(error).strip().splitlines()[0]
            raise UsageError(f"expected a T5 model in {model_id}, found: {first_line}") from None
        self._model.eval().requires_grad_(False).to(device)
        self.width = int(self._model.config.d_model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """The last hidden states, at most MAX_TOKENS a caption."""
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self._model.device)
        values = self._model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return TextFeatures(values.float(), batch.attention_mask.bool())


ENCODERS: dict[str, Callable[[str, torch.device], TextEncoder]] = {
    "hashed-words": lambda _argument, _device: HashedWords(),
    "t5": T5Encoder,
}


def text_encoder(name: str, device: torch.device) -> TextEncoder:
    """The encoder called `name`: "hashed-words", or "t5:<hub id or folder>", which runs on `device`."""
    kind, _, argument = name.partition(":")
    if kind not in ENCODERS:
        raise UsageError(f"expected a text encoder among {', '.join(sorted(ENCODERS))} (t5:<hub id>), found {name!r}")
    return ENCODERS[kind](argument, device)


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def _word_vector(word: str, width: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(width).astype(np.float32)


def _place_vector(place: int, width: int) -> np.ndarray:
    frequencies = 64.0 ** (-np.arange(width // 2) / (width // 2))
    angles = place * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)]).astype(np.float32)
