"""Training the tokenizer: rectified flow on stage 0's latents, with nested dropout of the tokens."""

from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.model.checkpoint import SavedCheckpoint, latents_config, load_latents, read_kind, save_checkpoint
from flextok.model.config import TokenizerConfig
from flextok.model.flow import sample_sigma
from flextok.model.nested_dropout import sample_keep
from flextok.model.tokenizer import Tokenizer
from flextok.provenance import artifact_input
from flextok.runtime.compute import ComputeConfig
from flextok.train.config import TokenizerRecipe, TrainConfig
from flextok.train.data import CACHE_BYTES, CachedLatents, CorpusImages, model_images
from flextok.train.job import TrainResult, config_or_usage_error, fingerprint_of
from flextok.train.launch import run_training
from flextok.train.loop import Batch, Objective, Source
from flextok.train.parallel import DistContext
from flextok.train.sample_order import SampleRng

FLOAT_BYTES = 4


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

    `latents_url` is the checkpoint of a stage 0 (kind vae), which becomes part of the tokenizer, frozen. With
    `val_url` and `train.validate_every`, the held-out loss stands in the history.
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
    def train_config(self) -> TrainConfig:
        return self.recipe.train

    def settings(self) -> dict[str, object]:
        """What decides the result, beside the inputs."""
        return {"image_size": self.image_size, **self.recipe.content()}

    def fingerprint(self) -> str:
        return fingerprint_of(self.label, self.settings(), [self.latents_url, self.train_url])

    def build(self, world: DistContext) -> tuple["TokenizerObjective", "TokenizerObjective | None"]:
        stage0 = read_kind(self.latents_url, "vae")
        values = {
            "latents": latents_config(stage0.config, self.latents_url),
            "image_size": self.image_size,
            **self.recipe.model.model_dump(),
        }
        tokenizer = Tokenizer.create(config_or_usage_error(TokenizerConfig, values), self.recipe.train.seed)
        tokenizer.latents.load_state_dict(load_latents(self.latents_url).state_dict())
        tokenizer.to(world.device)
        validation = None
        if self.val_url is not None and self.recipe.train.validate_every is not None:
            held_out = _latent_source(tokenizer, self.val_url, self.image_size, world)
            validation = TokenizerObjective(tokenizer, held_out, self.recipe.train.batch_size)
        source = _latent_source(tokenizer, self.train_url, self.image_size, world)
        return TokenizerObjective(tokenizer, source, self.recipe.train.batch_size), validation

    def save(self, objective: Objective, history: pa.Table) -> SavedCheckpoint:
        tokenizer = objective.model
        assert isinstance(tokenizer, Tokenizer)
        inputs = [artifact_input(self.latents_url), artifact_input(self.train_url)]
        return save_checkpoint(
            self.parent_url, "tokenizer", tokenizer.state_dict(), tokenizer.config, inputs, self.settings(), history
        )


class TokenizerObjective(Objective):
    """Velocity error of the decoder, given the first K tokens of each image; K, time, noise and drop are drawn."""

    model: Tokenizer

    def __init__(self, tokenizer: Tokenizer, source: Source, batch_size: int):
        super().__init__(tokenizer, source)
        self.batch_size = batch_size
        self._seen = torch.zeros(tokenizer.vocab_size, device=tokenizer.device)

    def forward(self, batch: Batch, rng: SampleRng) -> Tensor:
        """Loss [B] for `latents`, or for `images` that stage 0 encodes on the way."""
        config, device = self.model.config, self.model.device
        if "latents" in batch:
            z = batch["latents"]
        else:
            # Where stage 0 draws from its posterior, each visit of an image gets a draw of its own.
            names = [f"posterior/{place}" for place in rng.places]
            with torch.autocast(device.type, enabled=False):
                z = self.model.encode_images(model_images(batch["images"]), rng.seed, names)
        t_B = sample_sigma(config.sigma, rng.uniform("time"), config.mode_scale).to(device)
        if self.training:
            t_B = torch.where(self._is_pure_noise(rng).to(device), 1.0, t_B)
        keep_B = sample_keep(config.keep_mode, config.registers, rng.uniform("keep")).to(device)
        drop_B = (rng.uniform("drop") < config.condition_dropout).to(device)
        noise = rng.normal("noise", z.shape[1:]).to(device)
        losses = self.model.flow_loss(z, noise, t_B, keep_B, drop_B)
        self._seen[losses.ids.flatten()] = 1
        return losses.loss

    def _is_pure_noise(self, rng: SampleRng) -> Tensor:
        """Which images [B] get noise level 1.

        There the velocity is a plain regression of the latents on the tokens. Tokens that tell nothing yet are
        learned from it several times sooner than from all levels alike, most of which show the image to the decoder.
        """
        config = self.model.config
        if rng.places[0] < config.pure_noise_steps * self.batch_size:
            return torch.ones(len(rng), dtype=torch.bool)
        return rng.uniform("pure noise") < config.pure_noise_share

    def interval_metrics(self, world: DistContext) -> dict[str, float]:
        """`train/codebook_usage`: the part of the ids that occurred since the last call."""
        used = (world.sum(self._seen) > 0).float().mean().item()
        self._seen.zero_()
        return {"train/codebook_usage": used}


def _latent_source(tokenizer: Tokenizer, corpus_url: str, image_size: int, world: DistContext) -> Source:
    crops = CorpusImages(Corpus.open(corpus_url), image_size)
    channels, rows, columns = tokenizer.latent_shape
    fits = len(crops) * channels * rows * columns * FLOAT_BYTES <= CACHE_BYTES
    if tokenizer.latents.sample_posterior or not fits:
        return crops
    return CachedLatents(crops, tokenizer.encode_images, tokenizer.latent_shape, world)
