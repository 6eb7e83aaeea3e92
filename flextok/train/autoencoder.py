"""The autoencoder whose latents the tokenizer works on, trained here or taken over from elsewhere."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.errors import UsageError
from flextok.model.autoencoders.base import Autoencoder
from flextok.model.autoencoders.config import AutoencoderSettings, AutoencoderTraining
from flextok.model.checkpoint import SavedCheckpoint, save_checkpoint
from flextok.model.rng import SampleRng
from flextok.provenance import artifact_input
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.storage_errors import storage_errors
from flextok.train.augmentation import augmented
from flextok.train.config import AugmentationConfig, AutoencoderRecipe, AutoencoderTrainConfig
from flextok.train.data import CACHE_BYTES, CorpusImages, model_images
from flextok.train.job import TrainResult, fingerprint_of
from flextok.train.launch import run_training
from flextok.train.losses import NamedLosses
from flextok.train.objective import Batch, Objective
from flextok.train.parallel import DistContext
from flextok.train.perceptual import PerceptualLoss

MEASURE_BATCH = 64
MEASURE_SAMPLES = 4096


@storage_errors("train the autoencoder on {corpus_url} into {parent_url}", keeps="it resumes from its last state")
def train_autoencoder(
    recipe: AutoencoderRecipe, corpus_url: str, image_size: int, parent_url: str, compute: ComputeConfig
) -> TrainResult:
    """The autoencoder of `recipe` as a checkpoint of kind vae under `parent_url`.

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
    return run_training(AutoencoderJob(recipe, recipe.train, corpus_url, image_size, parent_url), compute)


def take_over(recipe: AutoencoderRecipe, parent_url: str) -> SavedCheckpoint:
    """The weights at `recipe.pretrained` as our checkpoint; their architecture must be the recipe's."""
    autoencoder = recipe.model.build()
    autoencoder.load_pretrained(str(recipe.pretrained))
    state = autoencoder.state_dict()
    return save_checkpoint(parent_url, "vae", state, recipe.model, [], recipe.content())


@dataclass(frozen=True)
class AutoencoderJob:
    """The arguments of `train_autoencoder` as a job."""

    recipe: AutoencoderRecipe
    train_config: AutoencoderTrainConfig
    corpus_url: str
    image_size: int
    parent_url: str
    label = "vae"

    def settings(self) -> dict[str, object]:
        """What decides the result, beside the inputs."""
        return {"image_size": self.image_size, **self.recipe.content()}

    def fingerprint(self) -> str:
        return fingerprint_of(self.label, self.settings(), [self.corpus_url])

    def build(self, world: DistContext) -> tuple["AutoencoderObjective", None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train_config.seed)
            autoencoder = self.recipe.model.build()
        train = self.train_config
        kept_bytes = CACHE_BYTES if train.augmentation.crop is None else 0
        source = CorpusImages(Corpus.open(self.corpus_url), self.image_size, kept_bytes)
        perceptual = PerceptualLoss(train.perceptual, world.device) if train.perceptual is not None else None
        return AutoencoderObjective(autoencoder, source, train.autoencoder, train.augmentation, perceptual), None

    def save(self, objective: Objective, history: pa.Table) -> SavedCheckpoint:
        assert isinstance(objective, AutoencoderObjective)
        config = measured(objective)
        inputs = [artifact_input(self.corpus_url)]
        state = objective.model.state_dict()
        return save_checkpoint(self.parent_url, "vae", state, config, inputs, self.settings(), history)


class AutoencoderObjective(Objective):
    """The autoencoder's own losses on images, and a perceptual one beside them."""

    model: Autoencoder
    source: CorpusImages

    def __init__(
        self,
        autoencoder: Autoencoder,
        source: CorpusImages,
        settings: AutoencoderTraining,
        augmentation: AugmentationConfig = AugmentationConfig(),  # noqa: B008 - immutable
        perceptual: PerceptualLoss | None = None,
    ):
        super().__init__(autoencoder, source)
        self.settings, self._augmentation = settings, augmentation
        self._perceptual = perceptual
        self._losses = NamedLosses({"perceptual": perceptual.weight} if perceptual is not None else {})

    def fetch(self, indices: np.ndarray, rng: SampleRng) -> Batch:
        """uint8 `images` at `indices`, flipped and cropped as the settings say."""
        return augmented(self.source, indices, rng, self._augmentation)

    def forward(self, batch: Batch, rng: SampleRng) -> Tensor:
        """Loss [B] for uint8 `images`."""
        images = model_images(batch["images"])
        reconstructions, losses = self.model.training_step(images, self.settings, rng)
        if self._perceptual is not None:
            losses = {**losses, "perceptual": self._perceptual(reconstructions, images)}
        return self._losses.total(losses, counted=self.training)

    def interval_metrics(self, world: DistContext) -> dict[str, float]:
        """`train/loss/<name>` of each loss where there are several."""
        return self._losses.means(world)


@torch.no_grad()
def measured(objective: AutoencoderObjective) -> AutoencoderSettings:
    """Scale the latents to unit size over (the first thousands of) the training images; gives the settings to save."""
    source, autoencoder = objective.source, objective.model
    count = min(len(source), MEASURE_SAMPLES)
    places = [np.arange(start, min(start + MEASURE_BATCH, count)) for start in range(0, count, MEASURE_BATCH)]
    device = next(autoencoder.parameters()).device
    return autoencoder.measure(model_images(source.fetch(indices)["images"].to(device)) for indices in places)
