"""The autoencoder whose latents the tokenizer works on, trained here or taken over from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.errors import UsageError
from flextok.model.autoencoders.base import Autoencoder, Reconstructed
from flextok.model.autoencoders.config import AutoencoderSettings
from flextok.model.checkpoint import SavedCheckpoint, save_checkpoint
from flextok.model.rng import SampleRng
from flextok.provenance import artifact_input
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.storage_errors import storage_errors
from flextok.train.adversarial import Adversary
from flextok.train.augmentation import augmented
from flextok.train.companion import Companion
from flextok.train.config import AutoencoderRecipe, AutoencoderTrainConfig
from flextok.train.data import CACHE_BYTES, CorpusImages, model_images
from flextok.train.discriminator import smallest_image
from flextok.train.job import TrainResult, fingerprint_of
from flextok.train.launch import run_training
from flextok.train.losses import NamedLosses
from flextok.train.objective import Batch, Objective
from flextok.train.parallel import DistContext
from flextok.train.perceptual import PerceptualLoss
from flextok.train.sharding import gathered

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
    autoencoder.load_pretrained(str(recipe.pretrained), recipe.pretrained_sha256)
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
            adversary = self._adversary(world)
        train = self.train_config
        kept_bytes = CACHE_BYTES if train.augmentation.crop is None else 0
        source = CorpusImages(Corpus.open(self.corpus_url), self.image_size, kept_bytes)
        perceptual = PerceptualLoss(train.perceptual, world.device) if train.perceptual is not None else None
        return AutoencoderObjective(autoencoder, source, train, perceptual, adversary), None

    def _adversary(self, world: DistContext) -> Adversary | None:
        train = self.train_config
        if (config := train.discriminator) is None:
            return None
        if self.image_size < smallest_image(config.layers):
            raise UsageError(
                f"expected images of {smallest_image(config.layers)} pixels or more for latents.train.discriminator.layers "
                f"{config.layers}, found {self.image_size}; take fewer layers"
            )
        return Adversary(config, train.batch_size, world)

    def save(self, objective: Objective, history: pa.Table) -> SavedCheckpoint:
        assert isinstance(objective, AutoencoderObjective)
        config = measured(objective)
        inputs = [artifact_input(self.corpus_url)]
        state = objective.model.state_dict()
        return save_checkpoint(self.parent_url, "vae", state, config, inputs, self.settings(), history)


class AutoencoderObjective(Objective):
    """The autoencoder's own losses on images, a perceptual one beside them, and that of a discriminator."""

    model: Autoencoder
    source: CorpusImages

    def __init__(
        self,
        autoencoder: Autoencoder,
        source: CorpusImages,
        config: AutoencoderTrainConfig,
        perceptual: PerceptualLoss | None = None,
        adversary: Adversary | None = None,
    ):
        super().__init__(autoencoder, source)
        self.config, self._perceptual, self.adversary = config, perceptual, adversary
        self._weight: Tensor | None = None  # of the generator's loss in this step, if it is known before `forward`
        self._losses = NamedLosses({"perceptual": perceptual.weight} if perceptual is not None else {})
        if adversary is not None and config.discriminator is not None:
            settings = config.discriminator
            self.companion = Companion(adversary.network, settings.optimizer(), settings.start_step)

    def fetch(self, indices: np.ndarray, rng: SampleRng) -> Batch:
        """uint8 `images` at `indices`, flipped and cropped as the settings say."""
        return augmented(self.source, indices, rng, self.config.augmentation)

    def forward(self, batch: Batch, rng: SampleRng) -> Tensor:
        """Loss [B] for uint8 `images`."""
        images = model_images(batch["images"])
        reconstructions, losses = self._reconstructed(images, rng)
        own_B = self._losses.total(losses, counted=self.training)
        adversary = self.adversary
        if adversary is None:
            return own_B
        if not self._is_judged(rng):
            return own_B + adversary.nothing()
        judged = adversary.judge(own_B, reconstructions)
        weight = self._weight
        if weight is None:
            weight = adversary.weigh([judged.gradients(self.model.last_layer())])
        hinge_B = adversary.hinge(reconstructions, images)
        self._losses.count("generator", judged.generator_B)
        self._losses.count("discriminator", hinge_B)
        # The discriminator learns by the same backward pass; its loss is none of the autoencoder's.
        return own_B + weight * judged.generator_B + (hinge_B - hinge_B.detach())

    def turns(self) -> set[int]:
        """Where the discriminator begins."""
        return {self.config.discriminator.start_step} if self.config.discriminator is not None else set()

    def prepare(self, slices: Sequence[tuple[Batch, SampleRng]]) -> None:
        """The weight of the generator's loss, which depends on all of a step's slices: each goes forward once more for it.

        One slice alone has it in `forward`.
        """
        self._weight, adversary = None, self.adversary
        if adversary is None or len(slices) == 1 or not self._is_judged(slices[0][1]):
            return
        gradients = []
        with gathered(self):
            for batch, rng in slices:
                reconstructions, losses = self._reconstructed(model_images(batch["images"]), rng)
                judged = adversary.judge(self._losses.total(losses, counted=False), reconstructions)
                gradients.append(judged.gradients(self.model.last_layer()))
        self._weight = adversary.weigh(gradients)

    def _reconstructed(self, images_B3HW: Tensor, rng: SampleRng) -> Reconstructed:
        """Reconstructions, and the losses that no discriminator is needed for."""
        found = self.model.training_step(images_B3HW, self.config.autoencoder, rng)
        if self._perceptual is None:
            return found
        perceptual_B = self._perceptual(found.images_B3HW, images_B3HW)
        return found._replace(losses={**found.losses, "perceptual": perceptual_B})

    def _is_judged(self, rng: SampleRng) -> bool:
        return self.adversary is not None and self.adversary.is_on(rng.places[0] // self.config.batch_size)

    def interval_metrics(self, world: DistContext) -> dict[str, float]:
        """`train/loss/<name>` of each loss where there are several, and `train/adversarial_weight` of the last step."""
        weight = self.adversary.weight if self.adversary is not None else None
        return {
            **self._losses.means(world),
            **({"train/adversarial_weight": weight.item()} if weight is not None else {}),
        }


@torch.no_grad()
def measured(objective: AutoencoderObjective) -> AutoencoderSettings:
    """Scale the latents to unit size over (the first thousands of) the training images; gives the settings to save."""
    source, autoencoder = objective.source, objective.model
    count = min(len(source), MEASURE_SAMPLES)
    places = [np.arange(start, min(start + MEASURE_BATCH, count)) for start in range(0, count, MEASURE_BATCH)]
    device = next(autoencoder.parameters()).device
    return autoencoder.measure(model_images(source.fetch(indices)["images"].to(device)) for indices in places)
