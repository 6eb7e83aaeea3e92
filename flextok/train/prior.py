"""Training a prior, of whichever kind, on one token store or several."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor

from flextok import storage
from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.model.checkpoint import SavedCheckpoint, save_checkpoint
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.rng import SampleRng
from flextok.provenance import artifact_input
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.storage_errors import storage_errors
from flextok.train.config import PriorRecipe, PriorTrainConfig
from flextok.train.data import TokenRows
from flextok.train.job import TrainResult, config_or_usage_error, fingerprint_of
from flextok.train.launch import run_training
from flextok.train.loop import Batch, Objective
from flextok.train.losses import NamedLosses
from flextok.train.parallel import DistContext


@storage_errors("train the prior into {parent_url}", keeps="it resumes from its last state")
def train_prior(
    recipe: PriorRecipe,
    train_tokens: str | Mapping[str, float],
    val_tokens_url: str | None,
    parent_url: str,
    compute: ComputeConfig,
) -> TrainResult:
    """Train a prior on a token store and save it under `parent_url`.

    `train_tokens` is the store's URL, or those of several with their weights: how often a row of each is drawn, relative
    to the others'. A label means the same class in all of them.

    With `val_tokens_url` and `train.validate_every`, the held-out loss (nats a token) is recorded in the history.
    """
    weights = {train_tokens: 1.0} if isinstance(train_tokens, str) else train_tokens
    stores = tuple((storage.absolute(url), weight) for url, weight in weights.items())
    val_tokens_url = storage.absolute(val_tokens_url) if val_tokens_url is not None else None
    return run_training(PriorJob(recipe, stores, val_tokens_url, storage.absolute(parent_url)), compute)


@dataclass(frozen=True)
class PriorJob:
    """The arguments of `train_prior` as a job."""

    recipe: PriorRecipe
    stores: tuple[tuple[str, float], ...]
    """URLs of the token stores to train on, and the weights of their rows."""
    val_tokens_url: str | None
    parent_url: str
    label = "prior"

    @property
    def train_config(self) -> PriorTrainConfig:
        return self.recipe.train

    def settings(self) -> dict[str, object]:
        """What decides the result, beside the inputs."""
        weights = [weight for _, weight in self.stores]
        return {**self.recipe.content(), **({"weights": weights} if len(weights) > 1 else {})}

    def fingerprint(self) -> str:
        return fingerprint_of(self.label, self.settings(), self.inputs())

    def inputs(self) -> list[str]:
        """The token stores: the held-out one counts, since its labels may have classes of their own."""
        return [*(url for url, _ in self.stores), *([self.val_tokens_url] if self.val_tokens_url is not None else [])]

    def build(self, world: DistContext) -> tuple["PriorObjective", "PriorObjective | None"]:
        parts = [TokenStore.open(url) for url, _ in self.stores]
        store = TokenStore.joined(parts)
        weights_N = np.repeat([weight for _, weight in self.stores], [len(part) for part in parts])
        held_out = TokenStore.open(self.val_tokens_url) if self.val_tokens_url is not None else None
        if held_out is not None and held_out.tokenizer != store.tokenizer:
            raise UsageError(
                f"expected train and val tokens of one tokenizer, found {store.tokenizer[:12]} and "
                f"{held_out.tokenizer[:12]}; tokenize both splits again"
            )
        train = self.recipe.train
        prior = Prior.create(prior_config(self.recipe, store, held_out), train.seed).to(world.device)
        prior.set_dropout(train.dropout)
        if train.z_loss:
            prior.add_z_loss()
        objective = PriorObjective(prior, store, train, weights_N / weights_N.mean())
        if held_out is None or train.validate_every is None:
            return objective, None
        return objective, PriorObjective(prior, held_out, train)

    def save(self, objective: Objective, history: pa.Table) -> SavedCheckpoint:
        prior = objective.model
        assert isinstance(prior, Prior)
        inputs = [artifact_input(url) for url in self.inputs()]
        return save_checkpoint(
            self.parent_url, "prior", prior.state_dict(), prior.config, inputs, self.settings(), history
        )


def prior_config(recipe: PriorRecipe, store: TokenStore, held_out: TokenStore | None = None) -> PriorConfig:
    """The architecture of `recipe` for the tokens in `store`; UsageError where these lack its condition.

    There is a class for each label in `store` or `held_out`: one that only held-out images have is never trained,
    but can be asked for.
    """
    num_classes = 0
    if recipe.model.condition == "class":
        labels = store.labels()
        if len(labels) == 0 or labels.min() < 0:
            raise UsageError(
                f"expected a label on every row for a class-conditional prior, found {int((labels < 0).sum())} of "
                f"{len(labels)} rows without; label the corpus or set prior.model.condition to text or none"
            )
        num_classes = max(int(s.labels().max()) for s in (store, held_out) if s is not None) + 1
    if recipe.model.condition == "text" and not any(store.texts()):
        raise UsageError(
            "expected captions for a text-conditional prior, found none; set prior.model.condition to class"
        )
    values = {
        "num_tokens": store.num_tokens,
        "codebooks": store.codebooks,
        "vocab_size": store.vocab_size,
        "num_classes": num_classes,
        "tokenizer": store.tokenizer,
    }
    return config_or_usage_error(PriorConfig, {"model": recipe.model, **values})


class PriorObjective(Objective):
    """What the prior's kind makes smaller, by default the negative log-likelihood a token in nats.

    The condition is dropped now and then.
    """

    model: Prior

    def __init__(self, prior: Prior, store: TokenStore, train: PriorTrainConfig, weights_N: np.ndarray | None = None):
        super().__init__(prior, TokenRows(store, weights_N))
        self.condition_dropout = train.condition_dropout
        self._losses = NamedLosses({"z": train.z_loss} if train.z_loss else {})
        self._texts = store.texts() if prior.config.condition == "text" else None

    def flops(self) -> float | None:
        """See `Objective.flops`."""
        return self.model.flops()

    def forward(self, batch: Batch, rng: SampleRng) -> Tensor:
        """Loss [B]; while not training, nothing is dropped."""
        drop_B = None
        if self.training:
            drop_B = (rng.uniform("drop") < self.condition_dropout).to(batch["ids"].device)
        texts = [self._texts[row] for row in batch["rows"].tolist()] if self._texts is not None else []
        labels_B, context = self.model.conditions(batch["labels"], texts)
        losses = self.model.training_step(batch["ids"], labels_B, context, drop_B, rng)
        return self._losses.total(losses, counted=self.training, complete=self.training)

    def interval_metrics(self, world: DistContext) -> dict[str, float]:
        """`train/loss/<name>` of each loss where there are several, as `nll` and `z`."""
        return self._losses.means(world)
