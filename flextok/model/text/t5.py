"""T5 and Flan-T5, as text-to-image models read captions: the encoder's last hidden states."""

import torch

from flextok.model.text.base import MAX_TOKENS, TEXT_ENCODERS, FrozenTransformer, load_frozen


@TEXT_ENCODERS.named("t5")
def t5(model_id: str, device: torch.device) -> FrozenTransformer:
    """The encoder of the T5 model in a folder or on the Hub; raises UsageError where there is none."""
    # In float32, as float16 overflows in T5 (huggingface/transformers 4586).
    model, tokenizer = load_frozen("T5EncoderModel", ["t5"], model_id, "t5")
    return FrozenTransformer(model, tokenizer, MAX_TOKENS, device)
