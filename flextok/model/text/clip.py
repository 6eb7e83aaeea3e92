"""CLIP's text tower: the last hidden states of all its tokens, not the pooled one."""

import torch

from flextok.model.text.base import MAX_TOKENS, TEXT_ENCODERS, FrozenTransformer, load_frozen


@TEXT_ENCODERS.named("clip")
def clip(model_id: str, device: torch.device) -> FrozenTransformer:
    """The text tower of the CLIP model in a folder or on the Hub, 77 tokens as published; UsageError where there is none."""
    model, tokenizer = load_frozen("CLIPTextModel", ["clip", "clip_text_model"], model_id, "clip")
    return FrozenTransformer(model, tokenizer, min(MAX_TOKENS, model.config.max_position_embeddings), device)
