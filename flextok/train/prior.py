"""Training a prior, of whichever kind, on one token store or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor

from flextok import storage
from flextok.data.text_features import TextFeatureStore
from flextok.data.tokens import TokenStore
from flextok.data.weights import PartWeights, part_type
from flextok.errors import UsageError
from flextok.model.checkpoint import SavedCheckpoint, save_checkpoint
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.rng import SampleRng
from flextok.model.text import TextFeatures, text_encoder
from flextok.provenance import artifact_input
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.storage_errors import storage_errors
from flextok.train.captions import StoredCaptions, require_encoder, unpacked
from flextok.train.config import PriorRecipe, PriorTrainConfig
from flextok.train.data import TokenRows
from flextok.train.job import TrainResult, config_or_usage_error, fingerprint_of
from flextok.train.launch import run_training
from flextok.train.losses import NamedLosses
from flextok.train.mup import scale_prior
from flextok.train.objective import Batch, Objective
from flextok.train.optimizer import ALIKE
from flextok.train.parallel import DistContext
from flextok.train.sample_order import Weights


@storage_errors("train the prior into {parent_url}", keeps="it resumes from its last state")
def train_prior(
    recipe: PriorRecipe,
    train_tokens: str | Mapping[str, float],
    val_tokens_url: str | None,
    parent_url: str,
    compute: ComputeConfig,
    text_features: Mapping[str, str] | None = None,
) -> TrainResult:
    """Train a prior on a token store and save it under `parent_url`.

    `train_tokens` is the store's URL, or those of several with their weights: how often a row of each is drawn, relative
    to the others'. A label means the same class in all of them.

    With `val_tokens_url` and `train.validate_every`, the held-out loss (nats a token) is recorded in the history.
    `text_features` has the URL of a store of features for that of each token store; without, captions are encoded anew
    at every step, each image's first alone.
    """
    weights = {train_tokens: 1.0} if isinstance(train_tokens, str) else train_tokens
    stores = tuple((storage.absolute(url), weight) for url, weight in weights.items())
    val_tokens_url = storage.absolute(val_tokens_url) if val_tokens_url is not None else None
    text = tuple((storage.absolute(tokens), storage.absolute(url)) for tokens, url in (text_features or {}).items())
    return run_training(PriorJob(recipe, stores, val_tokens_url, storage.absolute(parent_url), text), compute)


@dataclass(frozen=True)
class PriorJob:
    """The arguments of `train_prior` as a job."""

    recipe: PriorRecipe
    stores: tuple[tuple[str, float], ...]
    """URLs of the token stores to train on, and the weights of their rows."""
    val_tokens_url: str | None
    parent_url: str
    text_features: tuple[tuple[str, str], ...] = ()
    """URLs of token stores, each with that of the features of their captions."""
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
        """The token stores: the held-out one counts, since its labels may have classes of their own. Then text features."""
        held_out = [self.val_tokens_url] if self.val_tokens_url is not None else []
        return [*(url for url, _ in self.stores), *held_out, *(url for _, url in self.text_features)]

    def build(self, world: DistContext) -> tuple["PriorObjective", "PriorObjective | None"]:
        parts = [TokenStore.open(url) for url, _ in self.stores]
        store = TokenStore.joined(parts)
        weights = [weight for _, weight in self.stores]
        held_out = TokenStore.open(self.val_tokens_url) if self.val_tokens_url is not None else None
        if held_out is not None and held_out.tokenizer != store.tokenizer:
            raise UsageError(
                f"expected train and val tokens of one tokenizer, found {store.tokenizer[:12]} and "
                f"{held_out.tokenizer[:12]}; tokenize both splits again"
            )
        train, model = self.recipe.train, self.recipe.model
        captions = self._captions({url: part for (url, _), part in zip(self.stores, parts, strict=True)})
        encoder = text_encoder(model.text_encoder, world.device) if model.has_stored_text and captions is None else None
        known = encoder.digest if encoder is not None else captions.encoder if captions is not None else ""
        config = prior_config(self.recipe, store, held_out, known if model.has_stored_text else "")
        prior = Prior.create(config, train.seed)
        lr_factors = scale_prior(prior, train)
        prior.to(world.device)
        if encoder is not None:
            prior.take_encoder(encoder)
        prior.set_dropout(train.dropout)
        if train.z_loss:
            prior.add_z_loss()
        objective = PriorObjective(prior, store, train, part_weights(weights, parts), captions, lr_factors)
        if held_out is None or train.validate_every is None:
            return objective, None
        held_out_captions = self._captions({self.inputs()[len(self.stores)]: held_out})
        if held_out_captions is not None and held_out_captions.encoder != known != "":
            raise UsageError(
                f"expected text features of one encoder for train and val, {known[:12]}, found "
                f"{held_out_captions.encoder[:12]}; run `flextok encode-text` with one encoder"
            )
        return objective, PriorObjective(prior, held_out, train, None, held_out_captions)

    def _captions(self, stores: Mapping[str, TokenStore]) -> StoredCaptions | None:
        """The captions of token stores by their URL, None where none are stored."""
        urls = dict(self.text_features)
        if self.recipe.model.condition != "text" or not urls.keys() & stores.keys():
            return None
        for url in stores.keys() - urls.keys():
            raise UsageError(f"expected text features for all token stores or for none, found none for {url}")
        parts = [(store, TextFeatureStore.open(urls[url])) for url, store in stores.items()]
        captions = StoredCaptions(parts)
        require_encoder(captions, parts[0][1].meta.encoder_name, self.recipe.model)
        return captions

    def save(self, objective: Objective, history: pa.Table) -> SavedCheckpoint:
        prior = objective.model
        assert isinstance(prior, Prior)
        inputs = [artifact_input(url) for url in self.inputs()]
        return save_checkpoint(
            self.parent_url, "prior", prior.state_dict(), prior.config, inputs, self.settings(), history
        )


def prior_config(
    recipe: PriorRecipe, store: TokenStore, held_out: TokenStore | None = None, encoder: str = ""
) -> PriorConfig:
    """The architecture of `recipe` for the tokens in `store`; UsageError where these lack its condition.

    `encoder` is the digest of the text encoder that its captions are read by, where that has weights.

    There is a class for each label in `store` or `held_out`: one that only held-out images have is never trained,
    but can be asked for.
    """
    num_classes = 0
    if recipe.model.condition == "class":
        missing, highest = _labels(store)
        if len(store) == 0 or missing > 0:
            raise UsageError(
                f"expected a label on every row for a class-conditional prior, found {missing} of "
                f"{len(store)} rows without; label the corpus or set prior.model.condition to text or none"
            )
        num_classes = max(highest, _labels(held_out)[1] if held_out is not None else -1) + 1
    if recipe.model.condition == "text" and not any(any(texts.to_pylist()) for texts in store.scan("text")):
        raise UsageError(
            "expected captions for a text-conditional prior, found none; set prior.model.condition to class"
        )
    values = {
        "num_tokens": store.num_tokens,
        "codebooks": store.codebooks,
        "vocab_size": store.vocab_size,
        "num_classes": num_classes,
        "tokenizer": store.tokenizer,
        "text_encoder_digest": encoder,
    }
    return config_or_usage_error(PriorConfig, {"model": recipe.model, **values})


def _labels(store: TokenStore) -> tuple[int, int]:
    """How many rows have no label, and the highest one (-1 where none has)."""
    missing, highest = 0, -1
    for labels in store.scan("label"):
        known = labels.fill_null(-1).to_numpy()
        missing += int((known < 0).sum())
        highest = max(highest, int(known.max(initial=-1)))
    return missing, highest


def part_weights(weights: Sequence[float], stores: Sequence[TokenStore]) -> PartWeights | None:
    """The weights of the rows of several stores, one after another; None where all are alike."""
    if len(set(weights)) == 1:
        return None
    numbers = np.arange(len(stores), dtype=part_type(len(stores)))
    return PartWeights(weights, np.repeat(numbers, [len(store) for store in stores]))


class PriorObjective(Objective):
    """What the prior's kind makes smaller, by default the negative log-likelihood a token in nats.

    The condition is dropped now and then.
    """

    model: Prior

    def __init__(
        self,
        prior: Prior,
        store: TokenStore,
        train: PriorTrainConfig,
        weights: Weights | None = None,
        captions: StoredCaptions | None = None,
        lr_factors: Mapping[str, float] = ALIKE,
    ):
        has_texts = prior.config.condition == "text" and captions is None
        super().__init__(prior, TokenRows(store, weights, has_texts), lr_factors)
        self._has_texts = has_texts
        self.condition_dropout = train.condition_dropout
        self._losses = NamedLosses({"z": train.z_loss} if train.z_loss else {})
        self._captions = captions

    def flops(self) -> float | None:
        """See `Objective.flops`."""
        return self.model.flops()

    def fetch(self, indices: np.ndarray, rng: SampleRng) -> Batch:
        """The rows at `indices`, and the features of a caption of each that `rng` draws."""
        batch = super().fetch(indices, rng)
        if self._captions is None:
            return batch
        features = self._captions.features(indices.tolist(), rng.uniform("caption"))
        return {**batch, "features": features.values, "mask": features.mask}

    def forward(self, batch: Batch, rng: SampleRng) -> Tensor:
        """Loss [B]; while not training, nothing is dropped."""
        drop_B = None
        if self.training:
            drop_B = (rng.uniform("drop") < self.condition_dropout).to(batch["ids"].device)
        labels_B, context = self._conditions(batch)
        losses = self.model.training_step(batch["ids"], labels_B, context, drop_B, rng)
        return self._losses.total(losses, counted=self.training, complete=self.training)

    def interval_metrics(self, world: DistContext) -> dict[str, float]:
        """`train/loss/<name>` of each loss where there are several, as `nll` and `z`."""
        return self._losses.means(world)

    def _conditions(self, batch: Batch) -> tuple[Tensor | None, TextFeatures | None]:
        if self._captions is None:
            return self.model.conditions(batch["labels"], unpacked(batch["texts"]) if self._has_texts else [])
        if "features" not in batch:  # held out: the first caption of each
            return None, self._captions.features(batch["rows"].tolist(), None).to(batch["ids"].device)
        # A slice of a batch is as wide as its own captions.
        width = int(batch["mask"].sum(dim=1).max())
        return None, TextFeatures(batch["features"][:, :width], batch["mask"][:, :width])
