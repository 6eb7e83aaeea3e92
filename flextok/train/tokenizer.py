"""Training the tokenizer on an autoencoder's latents, with nested dropout of the tokens."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.errors import UsageError
from flextok.model.checkpoint import SavedCheckpoint, save_checkpoint
from flextok.model.config import TokenizerConfig
from flextok.model.load import load_autoencoder, load_tokenizer
from flextok.model.nested_dropout import sample_keep
from flextok.model.quantizers.base import Quantized
from flextok.model.rng import SampleRng
from flextok.model.tokenizer import Tokenizer
from flextok.provenance import artifact_input
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.storage_errors import storage_errors
from flextok.train.alignment import Alignment, begun_alignment
from flextok.train.augmentation import augmented
from flextok.train.buckets import LossParts
from flextok.train.codebook import MOST_COUNTED_IDS, IdsByPosition
from flextok.train.config import AugmentationConfig, DecoderOnlyConfig, TokenizerRecipe, TokenizerTrainConfig
from flextok.train.data import CACHE_BYTES, CachedLatents, CorpusImages, computed_once, model_images
from flextok.train.held_out import HeldOutDistance, HeldOutPictures
from flextok.train.init_from import freeze, take_over
from flextok.train.job import TrainResult, config_or_usage_error, fingerprint_of
from flextok.train.launch import run_training
from flextok.train.losses import NamedLosses
from flextok.train.mup import scale_tokenizer
from flextok.train.objective import Batch, Objective, Source
from flextok.train.optimizer import ALIKE
from flextok.train.origin import origin_of, pinned
from flextok.train.parallel import DistContext
from flextok.train.sharding import is_sharded

FLOAT_BYTES = 4


@storage_errors("train the tokenizer on {train_url} into {parent_url}", keeps="it resumes from its last state")
def train_tokenizer(
    recipe: TokenizerRecipe,
    latents_url: str,
    train_url: str,
    image_size: int,
    parent_url: str,
    compute: ComputeConfig,
    val_url: str | None = None,
) -> TrainResult:
    """Train a tokenizer on the corpus at `train_url` and save it under `parent_url`.

    `latents_url` is the checkpoint of an autoencoder (kind vae), which becomes part of the tokenizer, frozen. With
    `val_url` and `train.validate_every`, the held-out loss is recorded in the history.
    """
    latents_url, train_url, parent_url = map(storage.absolute, (latents_url, train_url, parent_url))
    val_url = storage.absolute(val_url) if val_url is not None else None
    origin = origin_of(recipe.init_from) if recipe.init_from is not None else None
    if origin is not None:
        recipe = pinned(recipe, origin["digest"])
    return run_training(TokenizerJob(recipe, latents_url, train_url, image_size, parent_url, val_url, origin), compute)


@dataclass(frozen=True)
class TokenizerJob:
    """The arguments of `train_tokenizer` as a job."""

    recipe: TokenizerRecipe
    latents_url: str
    train_url: str
    image_size: int
    parent_url: str
    val_url: str | None
    origin: dict[str, str] | None = None
    """The checkpoint that it begins from, as an input; its digest is in the recipe."""
    label = "tokenizer"

    @property
    def train_config(self) -> TokenizerTrainConfig:
        return self.recipe.train

    def settings(self) -> dict[str, object]:
        """What decides the result, beside the inputs."""
        return {"image_size": self.image_size, **self.recipe.content()}

    def fingerprint(self) -> str:
        return fingerprint_of(self.label, self.settings(), self.inputs())

    def inputs(self) -> list[str]:
        """The autoencoder and the corpora: the held-out one where it decides which weights are published."""
        judge = [self.val_url] if self.val_url is not None and self.train_config.is_judged else []
        return [self.latents_url, self.train_url, *judge]

    def build(self, world: DistContext) -> tuple["TokenizerObjective", "TokenizerObjective | None"]:
        autoencoder = load_autoencoder(self.latents_url)
        values = {
            "latents": autoencoder.config,
            "image_size": self.image_size,
            **self.recipe.model.model_dump(),
        }
        tokenizer = Tokenizer.create(config_or_usage_error(TokenizerConfig, values), self.recipe.train.seed)
        tokenizer.latents.load_state_dict(autoencoder.state_dict())
        alignment = begun_alignment(tokenizer, self.recipe.train, world.device)
        lr_factors = scale_tokenizer(tokenizer, self.recipe.train, alignment)
        frozen = self._begin_from_another(tokenizer)
        tokenizer.to(world.device)
        validation = None
        if self.val_url is not None and self.recipe.train.validate_every is not None:
            held_out = _latent_source(tokenizer, self.val_url, self.image_size, world)
            validation = TokenizerObjective(tokenizer, held_out, self.recipe.train, frozen=frozen)
            if (distance := self.recipe.train.validate_fd) is not None:
                validation.distance = HeldOutDistance(tokenizer, self.val_url, distance, world)
        source = _latent_source(
            tokenizer, self.train_url, self.image_size, world, self.recipe.train.augmentation, alignment
        )
        objective = TokenizerObjective(tokenizer, source, self.recipe.train, alignment, frozen, lr_factors)
        if (pictures := self.recipe.train.pictures) is not None:
            if self.val_url is None:
                raise UsageError("expected held-out images for tokenizer.train.pictures, found none; leave it out")
            objective.pictures = HeldOutPictures(tokenizer, self.val_url, pictures)
        return objective, validation

    def _begin_from_another(self, tokenizer: Tokenizer) -> frozenset[str]:
        """The weights of `init_from` for a new tokenizer; gives back the frozen parts, those without weights among them."""
        if self.origin is None or self.recipe.init_from is None:
            return frozenset()
        url, parts = self.origin["uri"], self.recipe.init_from.freeze
        source = load_tokenizer(url)
        take_over(tokenizer, source, url)
        freeze(tokenizer, source, parts, url)
        return frozenset(parts) | (set() if tokenizer.quantizer.state_dict() else {"quantizer"})

    def save(self, objective: Objective, history: pa.Table) -> SavedCheckpoint:
        tokenizer = objective.model
        assert isinstance(tokenizer, Tokenizer)
        tokenizer.decoder.finish_training()
        inputs = [artifact_input(url) for url in self.inputs()] + ([self.origin] if self.origin is not None else [])
        return save_checkpoint(
            self.parent_url, "tokenizer", tokenizer.state_dict(), tokenizer.config, inputs, self.settings(), history
        )


class TokenizerObjective(Objective):
    """Losses of decoder and quantizer, given the first K tokens of each image; K and drop are drawn here."""

    model: Tokenizer

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: Source,
        config: TokenizerTrainConfig,
        alignment: Alignment | None = None,
        frozen: frozenset[str] = frozenset(),
        lr_factors: Mapping[str, float] = ALIKE,
    ):
        super().__init__(tokenizer, source, lr_factors)
        self.config, self._alignment, self._frozen = config, alignment, frozen
        self.distance: HeldOutDistance | None = None
        self._losses = NamedLosses(config.loss_weights)
        is_counted = 0 < tokenizer.vocab_size <= MOST_COUNTED_IDS
        counts = torch.zeros(tokenizer.vocab_size, dtype=torch.int64, device=tokenizer.device)
        self._seen = counts if is_counted else None  # how often each id occurred
        self._by_position = IdsByPosition(
            tokenizer.num_tokens, tokenizer.codebooks, tokenizer.vocab_size, tokenizer.device
        )
        self._parts = LossParts(tokenizer.num_tokens, tokenizer.device)
        self._tokens: Tensor | None = None  # of all samples, once they stay as they are

    def fetch(self, indices: np.ndarray, rng: SampleRng) -> Batch:
        """Latents or images at `indices`, flipped and cropped as the settings say."""
        return augmented(self.source, indices, rng, self.config.augmentation)

    def turns(self) -> set[int]:
        """The decoder's, and where only that learns."""
        end = self.config.decoder_only
        return self.config.decoder.turns() | ({end.from_step} if end is not None else set())

    def frozen(self, step: int) -> set[str]:
        """Encoder and quantizer, where only the decoder learns."""
        if not self._tokens_stay(step):
            return set()
        names = self.model.state_dict().keys()
        return {name for name in names if name.startswith(("encoder.", "quantizer."))}

    def freeze(self, world: DistContext) -> None:
        """Encode all samples that are the same at each visit; a sharded encoder works only where all members take part."""
        source, model = self.source, self.model
        if not isinstance(source, CachedLatents) or is_sharded(model.encoder.registers):
            return
        last = (model.codebooks,) if model.codebooks > 1 or model.is_continuous else ()
        dtype = torch.float32 if model.is_continuous else torch.int64
        empty = torch.zeros(source.rows, model.num_tokens, *last, dtype=dtype)
        self._tokens = computed_once(
            empty, lambda rows: self._as_in_use(source.fetch(rows)["latents"].to(world.device)).ids, world
        )

    def forward(self, batch: Batch, rng: SampleRng) -> Tensor:
        """Loss [B] for `latents`, or for `images` that the autoencoder encodes on the way."""
        model, config, device = self.model, self.config, self.model.device
        if "latents" in batch:
            z = batch["latents"]
        else:
            # Where the autoencoder draws from its posterior, each visit of an image gets a draw of its own.
            names = [f"posterior/{place}" for place in rng.places]
            with torch.autocast(device.type, enabled=False):
                z = model.encode_images(model_images(batch["images"]), rng.seed, names)
        step = rng.places[0] // config.batch_size
        end = self._end_at(step) if self.training else None
        keep_mode = end.keep_mode if end is not None else None
        keep_B = sample_keep(keep_mode or config.keep_mode, model.num_tokens, rng.uniform("keep")).to(device)
        drop_B = (rng.uniform("drop") < config.condition_dropout).to(device)
        tokens_stay = self.training and self._tokens_stay(step)
        if tokens_stay:
            quantized = self._as_in_use(z) if self._tokens is None else self._known(self._tokens[batch["rows"].cpu()])
        else:
            unquantized = model.encoder(z)
            if "quantizer" in self._frozen:
                model.quantizer.eval()  # a codebook of running means would go on
            # never in bfloat16, which would pick other codes
            with torch.autocast(device.type, enabled=False):
                quantized = model.quantizer.training_step(unquantized, config.quantizer, rng)
        taught = self._taught(batch, step)
        losses = model.decoder.training_step(z, quantized.codes, keep_B, drop_B, config.decoder, rng, step, **taught)
        if shared := losses.keys() & quantized.losses.keys():
            raise ValueError(
                f"expected losses of decoder and quantizer by different names, found {sorted(shared)} in both"
            )
        self._parts.add(
            next(iter(losses.values())), keep_B, drop_B, model.decoder.noise_levels(config.decoder, rng, step)
        )
        if self._seen is not None:
            ids = quantized.ids.flatten()
            self._seen.index_add_(0, ids, torch.ones_like(ids))
            if self.training:
                self._by_position.add(quantized.ids)
        return self._losses.total(
            losses | quantized.losses, counted=self.training, complete=self.training and not tokens_stay
        )

    def _taught(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """What the decoder is told by a teacher in this step."""
        if self._alignment is None or not self.training or not self._alignment.settings.is_on(step):
            return {}
        features = batch.get("features")
        return {"features_BPF": self._alignment.features(batch["images"]) if features is None else features}

    @torch.no_grad()
    def _as_in_use(self, z: Tensor) -> Quantized:
        """What encoder and quantizer make of latents when nothing in them is trained."""
        encoder, quantizer = self.model.encoder.eval(), self.model.quantizer.eval()
        with torch.autocast(z.device.type, enabled=False):
            return quantizer(encoder(z))._replace(losses={})

    def _known(self, tokens: Tensor) -> Quantized:
        tokens = tokens.to(self.model.device)
        return Quantized(self.model.quantizer.codes(tokens), tokens, {})

    def _tokens_stay(self, step: int) -> bool:
        """Whether encoder and quantizer are frozen by then."""
        return self._frozen >= {"encoder", "quantizer"} or self._end_at(step) is not None

    def _end_at(self, step: int) -> DecoderOnlyConfig | None:
        """The settings of the end of the training, if `step` belongs to it."""
        end = self.config.decoder_only
        return end if end is not None and step >= end.from_step else None

    def interval_metrics(self, world: DistContext) -> dict[str, float]:
        """`train/loss/<name>` where there are several, `train/codebook_usage`, `train/codebook_perplexity` and
        `train/entropy_by_position/<position>`, all since the last call.

        The usage is the part of the ids that occurred, the perplexity the exponential of their entropy: as many ids as
        would be equally often in use. There are none of a continuous or a huge codebook.
        """
        metrics = self._losses.means(world)
        if self._seen is not None:
            shares = world.sum(self._seen).double()
            metrics["train/codebook_usage"] = (shares > 0).double().mean().item()
            shares /= shares.sum().clamp(min=1)
            metrics["train/codebook_perplexity"] = torch.special.entr(shares).sum().exp().item()
            self._seen.zero_()
            metrics |= self._by_position.entropies(world)
        return metrics

    def held_out_numbers(self) -> dict[str, float]:
        """The distance of decoded images from the originals, where it is asked for."""
        return self.distance.numbers() if self.distance is not None else {}

    def loss_parts(self, world: DistContext) -> dict[str, float]:
        """By noise level and by tokens kept."""
        return self._parts.means(world)

    def flops(self) -> float | None:
        """Of encoder and decoder, where both learn; later of the decoder alone, if all tokens are known by then."""
        decoder = self.model.decoder.flops()
        if decoder is None or self._tokens is not None:
            return decoder
        return decoder + self.model.encoder.flops()


def _latent_source(
    tokenizer: Tokenizer,
    corpus_url: str,
    image_size: int,
    world: DistContext,
    augmentation: AugmentationConfig = AugmentationConfig(),  # noqa: B008 - immutable
    alignment: Alignment | None = None,
) -> Source:
    """Latents and a teacher's features of the corpus in memory, where they fit and stay the same; else its images."""
    if augmentation.crop is not None:
        return CorpusImages(Corpus.open(corpus_url), image_size, cache_bytes=0)
    crops, flipped = CorpusImages(Corpus.open(corpus_url), image_size), augmentation.horizontal_flip > 0
    bytes_each = math.prod(tokenizer.latent_shape) * FLOAT_BYTES + (alignment.bytes_each if alignment else 0)
    if tokenizer.latents.sample_posterior or len(crops) * bytes_each * (1 + flipped) > CACHE_BYTES:
        return crops
    return CachedLatents(crops, tokenizer.encode_images, tokenizer.latent_shape, world, alignment, flipped)
