"""What the prior has learned: its held-out loss against what token histograms alone would give."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig
from flextok.evaluate.protocol import environment_record, evaluation_device
from flextok.evaluate.results import Metric, Series, statistic
from flextok.evaluate.tokens import token_statistics
from flextok.model.load import load_prior
from flextok.model.priors.base import Prior
from flextok.runtime.progress import track

NATS_TO_BITS = 1 / np.log(2)


@dataclass(frozen=True)
class PriorStatistics:
    """Numbers about a prior on held-out tokens, all in bits."""

    metrics: list[Metric]
    series: list[Series]

    def value(self, name: str) -> float:
        """The number called `name`; raises KeyError."""
        for metric in self.metrics:
            if metric.name == name:
                return metric.value
        raise KeyError(name)


def prior_statistics(
    prior_url: str, train_tokens_url: str, val_tokens_url: str, config: EvaluationConfig | None = None
) -> PriorStatistics:
    """The prior's loss on held-out tokens beside the entropy of each position's histogram, in bits a token.

    `prior_loss_bits`: mean over images and positions. `token_entropy_bits` and `token_entropy_bits_val`: mean over
    positions of the entropy of the train and held-out histograms, which a model that knows nothing but the position
    cannot beat on its own data. `prior_gain`: 1 - loss / the smaller of both. `prior_loss_bits_shuffled`: with the
    labels (or captions) permuted, where the prior has a condition. Series by position: the loss and both entropies.
    Rows without a label that a class-conditional prior knows are left out.
    """
    config = config or EvaluationConfig()
    device = evaluation_device()
    prior = load_prior(prior_url, device)
    store = TokenStore.open(val_tokens_url)
    if store.num_tokens != prior.config.num_tokens or store.vocab_size != prior.config.vocab_size:
        raise UsageError(
            f"expected tokens of {prior.config.num_tokens} positions and {prior.config.vocab_size} ids for prior "
            f"{prior_url}, found {store.num_tokens} and {store.vocab_size} in {val_tokens_url}"
        )
    rows = _known_rows(prior, store)[: config.max_images]
    if len(rows) == 0:
        raise UsageError(f"expected rows with labels of prior {prior_url} in {val_tokens_url}, found none")
    shuffled = np.random.default_rng(config.seed).permutation(rows)
    conditional = prior.config.condition != "none"
    with track("prior loss", len(rows) * (1 + conditional), "images") as task:
        right = _mean_loss(prior, store, rows, rows, config.batch_size, task.advance)
        wrong = _mean_loss(prior, store, rows, shuffled, config.batch_size, task.advance) if conditional else None

    entropy_train = token_statistics(train_tokens_url).entropy_by_position() / store.codebooks
    entropy_val = token_statistics(val_tokens_url).entropy_by_position() / store.codebooks
    protocol: dict[str, Any] = {
        "prior": prior.digest,
        "condition": prior.config.condition,
        "tokens": store.digest,
        "images": len(rows),
        "unit": "bits",
        "environment": environment_record(device),
    }
    train_protocol = {**protocol, "tokens": TokenStore.open(train_tokens_url).digest}
    lowest = min(entropy_train.mean(), entropy_val.mean())
    gain = float(1 - right.mean() / lowest) if lowest > 0 else 0.0
    metrics = [
        statistic("prior_loss_bits", float(right.mean()), protocol),
        statistic("token_entropy_bits", float(entropy_train.mean()), train_protocol),
        statistic("token_entropy_bits_val", float(entropy_val.mean()), protocol),
        statistic("prior_gain", gain, {**protocol, "unit": "fraction"}),
    ]
    if wrong is not None:
        permuted = {**protocol, "definition": f"as prior_loss_bits, condition permuted over images, seed {config.seed}"}
        metrics.append(statistic("prior_loss_bits_shuffled", float(wrong.mean()), permuted))
    places = range(1, store.num_tokens + 1)
    series = [
        Series("prior_loss_by_position", "position", places, right.tolist(), protocol),
        Series("train_entropy_by_position", "position", places, entropy_train.tolist(), train_protocol),
        Series("val_entropy_by_position", "position", places, entropy_val.tolist(), protocol),
    ]
    return PriorStatistics(metrics, series)


def _known_rows(prior: Prior, store: TokenStore) -> np.ndarray:
    """Indexes of the rows whose condition the prior knows."""
    rows = np.arange(len(store))
    if prior.config.condition == "class":
        labels = store.labels()
        rows = rows[(labels >= 0) & (labels < prior.config.num_classes)]
    return rows


@torch.inference_mode()
def _mean_loss(
    prior: Prior, store: TokenStore, rows: np.ndarray, condition_rows: np.ndarray, batch_size: int, advance
) -> np.ndarray:
    """Loss in bits at each position [L], mean over `rows`, each under the condition of its `condition_rows`."""
    ids, labels, texts = store.ids(), store.labels(), store.texts()
    total = np.zeros(store.num_tokens)
    for start in range(0, len(rows), batch_size):
        batch, givers = rows[start : start + batch_size], condition_rows[start : start + batch_size]
        labels_B, context = prior.conditions(torch.from_numpy(labels[givers]), [texts[row] for row in givers])
        ids_B = torch.from_numpy(ids[batch].astype(np.int64)).to(prior.device)
        loss = prior.loss(ids_B, labels_B, context).double().cpu().numpy()
        total += loss.reshape(len(batch), store.num_tokens, -1).mean(axis=2).sum(axis=0)
        advance(len(batch))
    return total / len(rows) * NATS_TO_BITS
