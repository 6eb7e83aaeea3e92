"""What a decoder is: quantized codes to latents."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from flextok.model.decoders.config import SamplerConfig
from flextok.model.nn.layers import matrices
from flextok.model.rng import SampleRng


class Decoder(nn.Module):
    """Interface of a decoder. It draws what its training needs, and gives its losses by name."""

    def training_step(
        self,
        z_BCHW: Tensor,
        codes_BLd: Tensor,
        keep_B: Tensor,
        drop_B: Tensor,
        settings: Any,
        rng: SampleRng,
        step: int,
    ) -> dict[str, Tensor]:
        """Losses of each image, [B], by name.

        keep_B: codes that count of each image, int64 in 1..L; drop_B: images decoded without any, bool. `settings` is
        what the kind's `training` class holds; draws come from `rng` alone. `step` counts from 0. Held-out losses are
        computed by it too, in eval mode, with draws that are the same each time. The first one is that of the latents.
        """
        raise NotImplementedError

    def finish_training(self) -> None:
        """Let go of what only its training needs, before the weights are saved."""

    def noise_levels(self, settings: Any, rng: SampleRng, step: int) -> Tensor | None:
        """The noise level in [0,1] of each image, [B] on the CPU, in a `training_step` with these; None without noise."""
        return None

    def flops(self) -> float | None:
        """Operations of the matrix products of a forward pass for an image of the training size; None if not known."""
        return None

    def sample(
        self,
        codes_BLd: Tensor,
        keep_B: Tensor,
        noise_BCHW: Tensor,
        sampler: SamplerConfig,
        guidance_at: Callable[[float], float] | None = None,
    ) -> Tensor:
        """Latents [B,C,H,W] decoded from the first keep_B codes of each image, of the shape of `noise_BCHW`.

        The noise is where a sampler starts; `guidance_at` gives the guidance at each t in (0,1] in place of
        `sampler.guidance`. A decoder that draws nothing reads the shape alone.
        """
        raise NotImplementedError

    def record(self, sampler: SamplerConfig) -> dict[str, Any]:
        """What `sampler` means to this decoder, for the protocol beside a number; that of a decoder in one pass."""
        return {"solver": "none: one pass"}

    def half_precision_modules(self) -> Iterator[nn.Module]:
        """The modules whose weights may be rounded to bfloat16 for use; by default the matrices of our blocks."""
        return matrices(self)

    def activation_bytes(self, positions: int, number_bytes: int) -> int:
        """Bytes that an image's largest activation takes in `sample`, its latents of `positions` = H*W.

        On a CPU as many images go through in a call as its allocator reuses; 0 means all of them.
        """
        return 0
