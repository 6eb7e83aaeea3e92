"""Training the tokenizer on an autoencoder's latents, with nested dropout of the tokens."""

from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.model.checkpoint import SavedCheckpoint, save_checkpoint
from flextok.model.config import TokenizerConfig
from flextok.model.load import load_autoencoder
from flextok.model.nested_dropout import sample_keep
from flextok.model.rng import SampleRng
from flextok.model.tokenizer import Tokenizer
from flextok.provenance import artifact_input
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.storage_errors import storage_errors
from flextok.train.config import TokenizerRecipe, TokenizerTrainConfig
from flextok.train.data import CACHE_BYTES, CachedLatents, CorpusImages, model_images
from flextok.train.job import TrainResult, config_or_usage_error, fingerprint_of
from flextok.train.launch import run_training
from flextok.train.loop import Batch, Objective, Source
from flextok.train.losses import NamedLosses
from flextok.train.parallel import DistContext

FLOAT_BYTES = 4
MOST_COUNTED_IDS = 1 << 22
"""Largest vocabulary whose usage is measured: a run sees no fair part of more ids, and each takes a number here."""


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
    return run_training(TokenizerJob(recipe, latents_url, train_url, image_size, parent_url, val_url), compute)


@dataclass(frozen=True)
class TokenizerJob:
    """The arguments of `train_tokenizer` as a job."""

    recipe: TokenizerRecipe
    latents_url: str
    train_url: str
    image_size: int
    parent_url: str
    val_url: str | None
    label = "tokenizer"

    @property
    def train_config(self) -> TokenizerTrainConfig:
        return self.recipe.train

    def settings(self) -> dict[str, object]:
        """What decides the result, beside the inputs."""
        return {"image_size": self.image_size, **self.recipe.content()}

    def fingerprint(self) -> str:
        return fingerprint_of(self.label, self.settings(), [self.latents_url, self.train_url])

    def build(self, world: DistContext) -> tuple["TokenizerObjective", "TokenizerObjective | None"]:
        autoencoder = load_autoencoder(self.latents_url)
        values = {
            "latents": autoencoder.config,
            "image_size": self.image_size,
            **self.recipe.model.model_dump(),
        }
        tokenizer = Tokenizer.create(config_or_usage_error(TokenizerConfig, values), self.recipe.train.seed)
        tokenizer.latents.load_state_dict(autoencoder.state_dict())
        tokenizer.to(world.device)
        validation = None
        if self.val_url is not None and self.recipe.train.validate_every is not None:
            held_out = _latent_source(tokenizer, self.val_url, self.image_size, world)
            validation = TokenizerObjective(tokenizer, held_out, self.recipe.train)
        source = _latent_source(tokenizer, self.train_url, self.image_size, world)
        return TokenizerObjective(tokenizer, source, self.recipe.train), validation

    def save(self, objective: Objective, history: pa.Table) -> SavedCheckpoint:
        tokenizer = objective.model
        assert isinstance(tokenizer, Tokenizer)
        inputs = [artifact_input(self.latents_url), artifact_input(self.train_url)]
        return save_checkpoint(
            self.parent_url, "tokenizer", tokenizer.state_dict(), tokenizer.config, inputs, self.settings(), history
        )


class TokenizerObjective(Objective):
    """Losses of decoder and quantizer, given the first K tokens of each image; K and drop are drawn here."""

    model: Tokenizer

    def __init__(self, tokenizer: Tokenizer, source: Source, config: TokenizerTrainConfig):
        super().__init__(tokenizer, source)
        self.config = config
        self._losses = NamedLosses(config.loss_weights)
        is_counted = 0 < tokenizer.vocab_size <= MOST_COUNTED_IDS
        self._seen = torch.zeros(tokenizer.vocab_size, device=tokenizer.device) if is_counted else None

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
        keep_B = sample_keep(config.keep_mode, model.num_tokens, rng.uniform("keep")).to(device)
        drop_B = (rng.uniform("drop") < config.condition_dropout).to(device)
        unquantized = model.encoder(z)
        # never in bfloat16, which would pick other codes
        with torch.autocast(device.type, enabled=False):
            quantized = model.quantizer.training_step(unquantized, config.quantizer, rng)
        step = rng.places[0] // config.batch_size
        losses = model.decoder.training_step(z, quantized.codes, keep_B, drop_B, config.decoder, rng, step)
        if shared := losses.keys() & quantized.losses.keys():
            raise ValueError(
                f"expected losses of decoder and quantizer by different names, found {sorted(shared)} in both"
            )
        if self._seen is not None:
            self._seen[quantized.ids.flatten()] = 1
        return self._losses.total(losses | quantized.losses, counted=self.training)

    def interval_metrics(self, world: DistContext) -> dict[str, float]:
        """`train/loss/<name>` where there are several, and `train/codebook_usage`, both since the last call.

        The usage is the part of the ids that occurred; there is none of a continuous or a huge codebook.
        """
        metrics = self._losses.means(world)
        if self._seen is not None:
            metrics["train/codebook_usage"] = (world.sum(self._seen) > 0).float().mean().item()
            self._seen.zero_()
        return metrics


def _latent_source(tokenizer: Tokenizer, corpus_url: str, image_size: int, world: DistContext) -> Source:
    crops = CorpusImages(Corpus.open(corpus_url), image_size)
    channels, rows, columns = tokenizer.latent_shape
    fits = len(crops) * channels * rows * columns * FLOAT_BYTES <= CACHE_BYTES
    if tokenizer.latents.sample_posterior or not fits:
        return crops
    return CachedLatents(crops, tokenizer.encode_images, tokenizer.latent_shape, world)
