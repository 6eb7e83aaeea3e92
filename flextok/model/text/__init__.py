"""Frozen text encoders, found by name. A new one is one file here."""

from flextok.model.text.base import MAX_TOKENS, TEXT_ENCODERS, TextEncoder, TextFeatures, text_encoder

__all__ = ["MAX_TOKENS", "TEXT_ENCODERS", "TextEncoder", "TextFeatures", "text_encoder"]
