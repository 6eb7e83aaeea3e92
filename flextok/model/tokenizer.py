"""The tokenizer: stage 0, encoder, quantizer and decoder behind one API."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flextok.config import parse_config
from flextok.model.autoencoders.base import build_latents
from flextok.model.checks import (
    TokenIds,
    check_codes,
    check_guidance,
    check_images,
    check_integer,
    check_keep,
    check_latents,
    check_noise,
    check_sample_ids,
)
from flextok.model.config import TokenizerConfig, TrunkConfig
from flextok.model.decoders.flow import Sampling, build_decoder
from flextok.model.encoder import Encoder
from flextok.model.flow import Guidance
from flextok.model.nn.layers import Attention, ModulatedBlock, SwiGLU
from flextok.model.quantizers.fsq import build_quantizer
from flextok.model.rng import normal_for
from flextok.model.weights import load_state, state_digest

Keep = int | Sequence[int] | Tensor | None

# glibc fetches buffers of 32 MB and more from the system anew each time, which costs a CPU a tenth of its speed.
REUSED_BYTES = 24 << 20


class FlowLoss(NamedTuple):
    """Training loss of each image [B], and the ids its tokens had [B,L]."""

    loss: Tensor
    ids: Tensor


class Tokenizer(nn.Module):
    """FlexTok: images to token sequences of which any prefix can be decoded (Bachmann et al. 2025).

    Images are float [B,3,H,W] in [-1,1]; ids int64 [B,L] ([B,L,C] with C > 1 codebooks); latents z [B,c,h,w], scaled.
    An image's result does not depend on its batch.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.latents = build_latents(config.latents)
        self.quantizer = build_quantizer(config.quantizer)
        self.encoder = Encoder(config, self.quantizer.dim)
        self.decoder = build_decoder(config, self.quantizer.dim)
        self.latents.requires_grad_(False)
        self._autocast_dtype: torch.dtype | None = None
        self._digest: str | None = None

    @classmethod
    def create(cls, config: TokenizerConfig, seed: int) -> "Tokenizer":
        """A tokenizer with random weights decided by `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    @classmethod
    def from_state(
        cls, config: TokenizerConfig, state: dict[str, Tensor], where: str, digest: str | None = None
    ) -> "Tokenizer":
        """A tokenizer with the weights `state`, in eval mode; raises IntegrityError where they do not fit."""
        # on the meta device first, so that a config which lies about sizes costs nothing
        with torch.device("meta"):
            tokenizer = cls(config)
        load_state(tokenizer, state, where)
        tokenizer._digest = digest or state_digest("tokenizer", config.model_dump(mode="json"), state)
        return tokenizer.eval()

    @classmethod
    def from_values(cls, values: dict[str, Any], state: dict[str, Tensor], where: str, digest: str) -> "Tokenizer":
        """`from_state` for a config as plain values; raises UsageError where they are no config of ours."""
        return cls.from_state(parse_config(TokenizerConfig, values, where), state, where, digest)

    def prepare(self, dtype: torch.dtype) -> "Tokenizer":
        """Freeze for use in float32, or in bfloat16 with the trunks' weights rounded once and for all."""
        self.requires_grad_(False)
        if dtype == torch.bfloat16:
            self._digest = self.digest
            self._autocast_dtype = dtype
            for module in self.modules():
                if isinstance(module, Attention | SwiGLU):
                    module.to(dtype)
                elif isinstance(module, ModulatedBlock):
                    module.adaln.to(dtype)
        return self

    @property
    def digest(self) -> str:
        """Digest of config and weights, the same as that of the checkpoint they are saved in."""
        return self._digest or state_digest("tokenizer", self.config.model_dump(mode="json"), self.state_dict())

    @property
    def num_tokens(self) -> int:
        """L, the longest token sequence of an image."""
        return self.config.registers

    @property
    def vocab_size(self) -> int:
        """Ids of a codebook lie in 0..vocab_size-1."""
        return self.quantizer.vocab_size

    @property
    def codebooks(self) -> int:
        """C, ids for each position."""
        return self.quantizer.codebooks

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents of an image of the training size."""
        rows, columns = self.config.grid
        return self.latents.channels, rows * self.config.patch_size, columns * self.config.patch_size

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are moved there, and results stay there."""
        return self.encoder.registers.device

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """What training changes: everything but stage 0 and the fixed tables of positions."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    # -- training ------------------------------------------------------------------------------------------------

    def flow_loss(self, z_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor, keep_B: Tensor, drop_B: Tensor) -> FlowLoss:
        """Loss of latents with the given draws: noise, its level t in [0,1], kept tokens 1..L, images without tokens.

        Every draw is the caller's, so that the result does not depend on any global generator.
        """
        quantized = self.quantizer(self.encoder(z_BCHW))
        loss = self.decoder.loss(z_BCHW, quantized.codes, keep_B, drop_B, noise_BCHW, t_B)
        return FlowLoss(loss, quantized.ids)

    # -- images <-> latents --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: Tensor, seed: int = 0, sample_ids: Sequence[int | str] | None = None) -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> scaled latents [B,c,h,w].

        `seed` and `sample_ids` matter only where stage 0 samples its posterior; without `sample_ids` each image of the
        call gets the same draw, so that its tokens do not depend on its place in the batch.
        """
        side = self.latents.factor * self.config.patch_size
        images = check_images(images, side).to(self.device)
        noise = None
        if self.latents.sample_posterior:
            shape = (self.latents.channels, *(size // self.latents.factor for size in images.shape[2:]))
            names = [0] * len(images) if sample_ids is None else check_sample_ids(sample_ids, len(images))
            noise = normal_for(seed, names, shape).to(self.device)
        return self.latents.encode(images, noise)

    @torch.no_grad()
    def images_from_latents(self, z: Tensor) -> Tensor:
        """Scaled latents [B,c,h,w] -> images [B,3,H,W], about [-1,1] and not clamped."""
        return self.latents.decode(check_latents(z, self.latents.channels).to(self.device))

    # -- latents <-> tokens --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_latents(self, z: Tensor) -> Tensor:
        """Scaled latents [B,c,h,w] -> ids [B,L], int64."""
        z = check_latents(z, self.latents.channels).to(self.device)
        with self._autocast():
            parts = z.split(self._images_at_once(self.config.encoder, z, copies=1))
            return torch.cat([self.quantizer(self.encoder(part)).ids for part in parts])

    @torch.no_grad()
    def decode_latents(
        self,
        ids: TokenIds,
        keep: Keep = None,
        steps: int = 25,
        guidance: Guidance = 7.5,
        norm_guidance: bool = True,
        seed: int = 0,
        noise: Tensor | None = None,
        sample_ids: Sequence[int | str] | None = None,
    ) -> Tensor:
        """Ids -> scaled latents [B,c,h,w]; arguments as in `detokenize`."""
        steps = check_integer("steps", steps)
        check_guidance(guidance)
        padded, lengths = check_codes(ids, self.num_tokens, self.vocab_size, self.codebooks)
        kept = check_keep(keep, lengths).to(self.device)
        if noise is None:
            noise = normal_for(seed, check_sample_ids(sample_ids, len(padded)), self.latent_shape)
        noise = check_noise(noise, len(padded), self.latents.channels).to(self.device)
        codes = self.quantizer.codes(padded.to(self.device))
        at_once = self._images_at_once(self.config.decoder.trunk, noise, copies=2)
        parts = zip(codes.split(at_once), kept.split(at_once), noise.split(at_once), strict=True)
        sampling = Sampling(steps, guidance, norm_guidance)
        with self._autocast():
            return torch.cat([self.decoder.sample(*part, sampling) for part in parts])

    # -- images <-> tokens ---------------------------------------------------------------------------------------

    def tokenize(self, images: Tensor, seed: int = 0, sample_ids: Sequence[int | str] | None = None) -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> ids int64 [B,L]; seed and sample_ids as in `encode_images`.

        Raises ValueError where shape, dtype or values are not as said.
        """
        return self.encode_latents(self.encode_images(images, seed, sample_ids))

    def detokenize(
        self,
        ids: TokenIds,
        keep: Keep = None,
        steps: int = 25,
        guidance: Guidance = 7.5,
        norm_guidance: bool = True,
        seed: int = 0,
        noise: Tensor | None = None,
        sample_ids: Sequence[int | str] | None = None,
    ) -> Tensor:
        """Ids -> images [B,3,H,W], about [-1,1] and not clamped.

        ids: int64 [B,K] with K in 1..L, or a list of prefixes [K_i] of any lengths. keep: tokens used of each image (an
        int, or one for each image); None uses all that are given. guidance: scale of classifier-free guidance, 1.0 for
        none, or a function of t in (0,1]. norm_guidance: adaptive projected rather than plain guidance.
        noise: where the sampler starts, [B,c,h,w] in latent units; its h, w set the picture's size. Without it, image i
        starts from a stream of its own, decided by `seed` and sample_ids[i] (default i).
        Raises ValueError where shapes, ids or lengths are not as said.
        """
        z = self.decode_latents(ids, keep, steps, guidance, norm_guidance, seed, noise, sample_ids)
        return self.latents.decode(z)

    def autoencode(
        self,
        images: Tensor,
        keep: Keep = None,
        steps: int = 25,
        guidance: Guidance = 7.5,
        norm_guidance: bool = True,
        seed: int = 0,
        noise: Tensor | None = None,
        sample_ids: Sequence[int | str] | None = None,
    ) -> Tensor:
        """Images [B,3,H,W] -> what their first `keep` tokens decode to, of the same size; arguments as in `detokenize`."""
        z = self.encode_images(images, seed, sample_ids)
        if noise is None:
            noise = normal_for(seed, check_sample_ids(sample_ids, len(z)), z.shape[1:])
        return self.detokenize(self.encode_latents(z), keep, steps, guidance, norm_guidance, noise=noise)

    def _images_at_once(self, trunk: TrunkConfig, z: Tensor, copies: int) -> int:
        """Images that go through a trunk in one call: all of them, but on a CPU only as many as its allocator reuses."""
        if self.device.type != "cpu":
            return len(z)
        positions = z[0, 0].numel() // self.config.patch_size**2 + self.num_tokens
        number_bytes = 2 if self._autocast_dtype is not None else 4
        return max(1, REUSED_BYTES // (copies * positions * 2 * trunk.hidden * number_bytes))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self._autocast_dtype or torch.bfloat16, enabled=self._autocast_dtype is not None
        )
