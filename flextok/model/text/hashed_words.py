"""A stand-in for a text encoder that needs no download: each word is a fixed random vector of its hash, plus its place."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from flextok.digests import digest_of
from flextok.errors import UsageError
from flextok.model.text.base import TEXT_ENCODERS, TextFeatures


class HashedWords:
    """One feature a word, lower case and without punctuation; an empty caption has none."""

    width = 64
    max_words = 32
    digest = digest_of(["hashed-words", width, max_words])

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """See `TextEncoder.encode`."""
        words = [_words(text)[: self.max_words] for text in texts]
        values = np.zeros((len(texts), max(map(len, words), default=0), self.width), dtype=np.float32)
        mask = np.zeros(values.shape[:2], dtype=bool)
        for row, row_words in enumerate(words):
            for place, word in enumerate(row_words):
                values[row, place] = _word_vector(word, self.width) + _place_vector(place, self.width)
            mask[row, : len(row_words)] = True
        return TextFeatures(torch.from_numpy(values), torch.from_numpy(mask))


@TEXT_ENCODERS.named("hashed_words")
def hashed_words(argument: str, device: torch.device) -> HashedWords:
    """The encoder, on the CPU whatever the device."""
    if argument:
        raise UsageError(f"expected the text encoder hashed-words alone, found hashed-words:{argument}")
    return HashedWords()


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def _word_vector(word: str, width: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(width).astype(np.float32)


def _place_vector(place: int, width: int) -> np.ndarray:
    frequencies = 64.0 ** (-np.arange(width // 2) / (width // 2))
    angles = place * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)]).astype(np.float32)
