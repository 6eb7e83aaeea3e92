"""The tokenizer: autoencoder, encoder, quantizer and decoder behind one API."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

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
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.base import Decoder
from flextok.model.decoders.config import SamplerConfig
from flextok.model.encoder import Encoder
from flextok.model.flow import Guidance
from flextok.model.nn.outline import outlined
from flextok.model.rng import normal_for
from flextok.model.weights import load_state, state_digest

Keep = int | Sequence[int] | Tensor | None

# glibc fetches buffers of 32 MB and more from the system anew each time, which costs a CPU a tenth of its speed.
REUSED_BYTES = 24 << 20
DEFAULTS = SamplerConfig()


class Tokenizer(nn.Module):
    """FlexTok: images to token sequences of which any prefix can be decoded (Bachmann et al. 2025).

    Images are float [B,3,H,W] in [-1,1]; ids int64 [B,L] ([B,L,C] with C > 1 codebooks); latents z [B,c,h,w], scaled.
    Where the quantizer is continuous, `ids` are its numbers, float32 [B,L,C]. An image's result does not depend on its
    batch.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.latents = config.latents.build()
        self.quantizer = config.quantizer.build()
        self.encoder = Encoder(config, self.quantizer.dim)
        self.decoder = config.decoder.build(config.decoder_shape(self.quantizer.dim))
        self.latents.requires_grad_(False).train()  # as a frozen one is in training, from the start
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
        with outlined():
            tokenizer = cls(config)
        load_state(tokenizer, state, where)
        tokenizer._digest = digest or state_digest("tokenizer", config.model_dump(mode="json"), state)
        return tokenizer.eval()

    @classmethod
    def outline(cls, config: TokenizerConfig, digest: str) -> "Tokenizer":
        """The one with that digest, without weights: it tells what it is, and computes nothing."""
        with outlined():
            tokenizer = cls(config)
        tokenizer._digest = digest
        return tokenizer

    def prepare(self, dtype: torch.dtype) -> "Tokenizer":
        """Freeze for use in float32, or in bfloat16 with the trunks' weights rounded once and for all."""
        self.requires_grad_(False)
        if dtype == torch.bfloat16:
            self._digest = self.digest
            self._autocast_dtype = dtype
            for part in (self.encoder, self.decoder):
                for module in part.half_precision_modules():
                    module.to(dtype)
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
        """Ids of a codebook lie in 0..vocab_size-1; 0 where tokens are numbers."""
        return self.quantizer.vocab_size

    @property
    def is_continuous(self) -> bool:
        """Whether tokens are numbers, float32 [B,L,C], rather than ids of a vocabulary."""
        return self.vocab_size == 0

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
        """What training changes: everything but the autoencoder and the fixed tables of positions."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    # -- images <-> latents --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: Tensor, seed: int = 0, sample_ids: Sequence[int | str] | None = None) -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> scaled latents [B,c,h,w].

        `seed` and `sample_ids` matter only where the autoencoder samples its posterior; without `sample_ids` each image
        of the call gets the same draw, so that its tokens do not depend on its place in the batch.
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
        """Scaled latents [B,c,h,w] -> ids int64 [B,L]; of a continuous quantizer float32 [B,L,C]."""
        z = check_latents(z, self.latents.channels).to(self.device)
        return torch.cat([self._ids(part) for part in z.split(self._images_at_once(self.encoder, z))])

    @torch.no_grad()
    def decode_latents(
        self,
        ids: TokenIds,
        keep: Keep = None,
        steps: int = DEFAULTS.steps,
        guidance: Guidance = DEFAULTS.guidance,
        norm_guidance: bool = DEFAULTS.norm_guidance,
        seed: int = DEFAULTS.seed,
        noise: Tensor | None = None,
        sample_ids: Sequence[int | str] | None = None,
    ) -> Tensor:
        """Ids -> scaled latents [B,c,h,w]; arguments as in `detokenize`."""
        check_guidance(guidance)
        guidance_at = guidance if callable(guidance) else None
        # checked here rather than by the class, whose limits are those of recipes
        sampler = SamplerConfig.model_construct(
            steps=check_integer("steps", steps),
            guidance=DEFAULTS.guidance if callable(guidance) else guidance,
            norm_guidance=norm_guidance,
            seed=seed,
        )
        padded, lengths = check_codes(ids, self.num_tokens, self.vocab_size, self.codebooks)
        kept = check_keep(keep, lengths).to(self.device)
        if noise is None:
            noise = normal_for(seed, check_sample_ids(sample_ids, len(padded)), self.latent_shape)
        noise = check_noise(noise, len(padded), self.latents.channels).to(self.device)
        codes = self.quantizer.codes(padded.to(self.device))
        at_once = self._images_at_once(self.decoder, noise)
        parts = zip(codes.split(at_once), kept.split(at_once), noise.split(at_once), strict=True)
        with self._autocast():
            return torch.cat([self.decoder.sample(*part, sampler, guidance_at) for part in parts])

    # -- images <-> tokens ---------------------------------------------------------------------------------------

    def tokenize(self, images: Tensor, seed: int = 0, sample_ids: Sequence[int | str] | None = None) -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> ids int64 [B,L] as in `encode_latents`; seed and sample_ids as in `encode_images`.

        Raises ValueError where shape, dtype or values are not as said.
        """
        return self.encode_latents(self.encode_images(images, seed, sample_ids))

    def detokenize(
        self,
        ids: TokenIds,
        keep: Keep = None,
        steps: int = DEFAULTS.steps,
        guidance: Guidance = DEFAULTS.guidance,
        norm_guidance: bool = DEFAULTS.norm_guidance,
        seed: int = DEFAULTS.seed,
        noise: Tensor | None = None,
        sample_ids: Sequence[int | str] | None = None,
    ) -> Tensor:
        """Ids -> images [B,3,H,W], about [-1,1] and not clamped.

        ids: what `tokenize` gives, [B,K] with K in 1..L, or a list of prefixes [K_i] of any lengths. keep: tokens used of each image (an
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
        steps: int = DEFAULTS.steps,
        guidance: Guidance = DEFAULTS.guidance,
        norm_guidance: bool = DEFAULTS.norm_guidance,
        seed: int = DEFAULTS.seed,
        noise: Tensor | None = None,
        sample_ids: Sequence[int | str] | None = None,
    ) -> Tensor:
        """Images [B,3,H,W] -> what their first `keep` tokens decode to, of the same size; arguments as in `detokenize`."""
        z = self.encode_images(images, seed, sample_ids)
        if noise is None:
            noise = normal_for(seed, check_sample_ids(sample_ids, len(z)), z.shape[1:])
        return self.detokenize(self.encode_latents(z), keep, steps, guidance, norm_guidance, noise=noise)

    def _ids(self, z: Tensor) -> Tensor:
        with self._autocast():
            unquantized = self.encoder(z)
        # never in bfloat16, which would pick other codes
        return self.quantizer(unquantized).ids

    def _images_at_once(self, part: Encoder | Decoder, z: Tensor) -> int:
        """Images that go through a part in one call: all of them, but on a CPU only as many as its allocator reuses."""
        each = part.activation_bytes(z[0, 0].numel(), 2 if self._autocast_dtype is not None else 4)
        if self.device.type != "cpu" or each == 0:
            return len(z)
        return max(1, REUSED_BYTES // each)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self._autocast_dtype or torch.bfloat16, enabled=self._autocast_dtype is not None
        )
