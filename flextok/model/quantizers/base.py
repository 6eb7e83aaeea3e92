"""What a quantizer is: continuous codes to tokens and back."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from flextok.model.rng import SampleRng


class Quantized(NamedTuple):
    """Codes [B,L,d] (float32), the tokens they have, and the losses of each image [B] by name.

    Tokens are ids, int64 [B,L] ([B,L,C] with C > 1 codebooks); of a continuous quantizer they are float32 [B,L,C].
    Gradients reach the encoder through codes and losses.
    """

    codes: Tensor
    ids: Tensor
    losses: dict[str, Tensor]


class Quantizer(nn.Module):
    """Interface of a quantizer.

    Buffers that training changes (an EMA codebook) are floating point and persistent: they are saved with the weights.
    They change only in training mode. Where several processes train together or a batch goes through in slices, a forward
    pass sees a part of the batch: counts and sums over it go through `nn.collective.summed`; a model whose buffers are all
    changed by means over the batch may do without, as the training loop then averages the changes. Buffers that are not
    persistent must be made on the CPU by name, as a model is laid out on the meta device before it is loaded.
    """

    dim: int
    """d, the width of a code."""
    vocab_size: int
    """Ids lie in 0..vocab_size-1. 0: the quantizer is continuous, its tokens are numbers rather than ids."""
    codebooks: int
    """C, ids (or numbers) for each position."""

    def forward(self, z_BLd: Tensor) -> Quantized:
        """Quantize unbounded codes [B,L,d]."""
        raise NotImplementedError

    def training_step(self, z_BLd: Tensor, settings: Any, rng: SampleRng) -> Quantized:
        """The same while the tokenizer is trained: `settings` is what the kind's `training` class holds.

        Draws come from `rng` alone. Held-out losses are computed by it too, in eval mode.
        """
        return self(z_BLd)

    def codes(self, ids: Tensor) -> Tensor:
        """Codes [B,L,d] of tokens, equal to those `forward` gave with them."""
        raise NotImplementedError
