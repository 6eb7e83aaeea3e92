"""Stage 0: the autoencoder whose latents the tokenizer works on, trained here or taken over from diffusers."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.errors import UsageError
from flextok.model.autoencoders.base import AutoencoderKLLatents, ConvLatents, Latents, build_latents
from flextok.model.checkpoint import SavedCheckpoint, save_checkpoint
from flextok.model.config import AutoencoderKLConfig, LatentsConfig
from flextok.provenance import artifact_input
from flextok.runtime.compute import ComputeConfig
from flextok.train.config import LatentsRecipe, TrainConfig
from flextok.train.data import CorpusImages, model_images
from flextok.train.job import TrainResult, fingerprint_of
from flextok.train.launch import run_training
from flextok.train.loop import Batch, Objective
from flextok.train.parallel import DistContext
from flextok.train.sample_order import SampleRng

KL_WEIGHT = 1e-6
MEASURE_BATCH = 64
MEASURE_SAMPLES = 4096


def train_latents(
    recipe: LatentsRecipe, corpus_url: str, image_size: int, parent_url: str, compute: ComputeConfig
) -> TrainResult:
    """The stage 0 of `recipe` as a checkpoint of kind vae under `parent_url`.

    Trained on the corpus at `corpus_url`, after which its latents are measured so that they have unit size; or, with
    `recipe.pretrained`, taken over as it is.
    """
    if image_size % recipe.model.factor:
        raise UsageError(
            f"expected an image size in multiples of the latents' factor {recipe.model.factor}, found {image_size}"
        )
    if recipe.train is None:
        saved = take_over(recipe, parent_url)
        return TrainResult(saved.url, saved.digest, {})
    corpus_url, parent_url = map(storage.absolute, (corpus_url, parent_url))
    return run_training(LatentsJob(recipe, recipe.train, corpus_url, image_size, parent_url), compute)


def take_over(recipe: LatentsRecipe, parent_url: str) -> SavedCheckpoint:
    """The diffusers weights at `recipe.pretrained` as our checkpoint; its architecture must be the recipe's."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    source = str(recipe.pretrained)
    latents = build_latents(recipe.model)
    assert isinstance(latents, AutoencoderKLLatents)
    try:
        pretrained = AutoencoderKL.from_pretrained(source, use_safetensors=True, low_cpu_mem_usage=False)
        latents.vae.load_state_dict(pretrained.state_dict())
    except (OSError, ValueError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UsageError(
            f"expected diffusers weights of latents.model's architecture in {source}, found: {first_line}"
        ) from None
    return save_checkpoint(parent_url, "vae", latents.state_dict(), recipe.model, [], recipe.content())


@dataclass(frozen=True)
class LatentsJob:
    """The arguments of `train_latents` as a job."""

    recipe: LatentsRecipe
    train_config: TrainConfig
    corpus_url: str
    image_size: int
    parent_url: str
    label = "vae"

    def settings(self) -> dict[str, object]:
        """What decides the result, beside the inputs."""
        return {"image_size": self.image_size, **self.recipe.content()}

    def fingerprint(self) -> str:
        return fingerprint_of(self.label, self.settings(), [self.corpus_url])

    def build(self, world: DistContext) -> tuple["LatentsObjective", None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train_config.seed)
            latents = build_latents(self.recipe.model)
        return LatentsObjective(latents, CorpusImages(Corpus.open(self.corpus_url), self.image_size)), None

    def save(self, objective: Objective, history: pa.Table) -> SavedCheckpoint:
        assert isinstance(objective, LatentsObjective)
        config = measured(objective, self.recipe.model)
        inputs = [artifact_input(self.corpus_url)]
        state = objective.model.state_dict()
        return save_checkpoint(self.parent_url, "vae", state, config, inputs, self.settings(), history)


class LatentsObjective(Objective):
    """Reconstruction error in pixels, with a small pull that keeps the latents bounded."""

    model: Latents
    source: CorpusImages

    def forward(self, batch: Batch, rng: SampleRng) -> Tensor:
        """Loss [B] for uint8 `images`."""
        images = model_images(batch["images"])
        factor = self.model.factor
        shape = (self.model.channels, images.shape[2] // factor, images.shape[3] // factor)
        noise = rng.normal("noise", shape).to(images.device)
        if isinstance(self.model, ConvLatents):
            return self.model.reconstruction_loss(images, noise)
        assert isinstance(self.model, AutoencoderKLLatents)
        posterior = self.model.posterior(images)
        z = (posterior.mean + posterior.std * noise) * self.model.scaling_factor
        error = (self.model.decode(z) - images).square().flatten(1).mean(dim=1)
        return error + KL_WEIGHT * posterior.kl()


@torch.no_grad()
def measured(objective: LatentsObjective, config: LatentsConfig) -> LatentsConfig:
    """`config`, with the model's latents scaled to unit size over (the first thousands of) the training images."""
    source, latents = objective.source, objective.model
    count = min(len(source), MEASURE_SAMPLES)
    places = [np.arange(start, min(start + MEASURE_BATCH, count)) for start in range(0, count, MEASURE_BATCH)]
    device = next(latents.parameters()).device
    batches = (model_images(source.fetch(indices)["images"].to(device)) for indices in places)
    if isinstance(latents, ConvLatents):
        latents.measure_statistics(batches)
        return config
    assert isinstance(latents, AutoencoderKLLatents) and isinstance(config, AutoencoderKLConfig)
    unscaled = torch.cat([latents.encode(images).flatten() / latents.scaling_factor for images in batches])
    return config.model_copy(update={"scaling_factor": 1 / unscaled.double().std().item()})
