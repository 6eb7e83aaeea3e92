"""What the prior has learned: its held-out loss against what token histograms alone would give, and the bytes it saves."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig, keep_counts
from flextok.evaluate.protocol import environment_record, evaluation_device
from flextok.evaluate.results import Metric, Series, standard_error, statistic
from flextok.evaluate.tokens import token_statistics
from flextok.model.load import load_prior, prior_outline
from flextok.model.priors.config import PriorConfig
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.progress import track
from flextok.runtime.spread import spread

NATS_TO_BITS = 1 / np.log(2)


@dataclass(frozen=True)
class PriorCode:
    """What held-out images take in an arithmetic code by the prior's probabilities."""

    bytes_L: np.ndarray
    """Of their first 1, 2, ... L tokens, mean over the images."""
    condition_bytes: float
    """Of what the reader must know beside them, mean: a class among equally likely ones, or a caption as UTF-8."""
    protocol: dict[str, Any]


@dataclass(frozen=True)
class PriorStatistics:
    """Numbers about a prior on held-out tokens, in bits or bytes."""

    metrics: list[Metric]
    series: list[Series]
    code: "PriorCode"

    def value(self, name: str) -> float:
        """The number called `name`; raises KeyError."""
        for metric in self.metrics:
            if metric.name == name:
                return metric.value
        raise KeyError(name)


def prior_statistics(
    prior_url: str,
    train_tokens_url: str,
    val_tokens_url: str,
    config: EvaluationConfig | None = None,
    compute: ComputeConfig | None = None,
) -> PriorStatistics:
    """The prior's loss on held-out tokens beside the entropy of each position's histogram, in bits a token.

    Here or, where `compute` has the address of a cluster, by workers on its nodes.

    `prior_loss_bits`: mean over images and positions. `token_entropy_bits` and `token_entropy_bits_val`: mean over
    positions of the entropy of the train and held-out histograms, which a model that knows nothing but the position
    cannot beat on its own data. `prior_gain`: 1 - loss / the smaller of both. `prior_loss_bits_shuffled`: with the
    labels (or captions) permuted, where the prior has a condition. `prior_bytes_per_image` by K: the code length of the
    first K tokens, the condition known. Series by position: the loss and both entropies.
    Rows without a label that a class-conditional prior knows are left out.
    """
    config = config or EvaluationConfig()
    device = evaluation_device(compute)
    prior, digest = prior_outline(prior_url)
    store = TokenStore.open(val_tokens_url)
    if store.num_tokens != prior.num_tokens or store.vocab_size != prior.vocab_size:
        raise UsageError(
            f"expected tokens of {prior.num_tokens} positions and {prior.vocab_size} ids for prior "
            f"{prior_url}, found {store.num_tokens} and {store.vocab_size} in {val_tokens_url}"
        )
    rows = _known_rows(prior, store)[: config.max_images]
    if len(rows) == 0:
        raise UsageError(f"expected rows with labels of prior {prior_url} in {val_tokens_url}, found none")
    givers = [rows]  # of the condition, for each row
    if prior.condition != "none":
        givers.append(np.random.default_rng(config.seed).permutation(rows))
    total, lengths = np.zeros((len(givers), store.num_tokens)), []
    keeps = keep_counts(None, store.num_tokens)
    with (
        track("prior loss", len(rows) * len(givers), "images") as task,
        spread("a worker on the prior's loss", HeldOutLoss, (prior_url, val_tokens_url, device), compute) as losses,
    ):
        for sum_L, of in zip(total, givers, strict=True):
            for loss_BL in losses(_parts(rows, of, config.batch_size)):
                sum_L += loss_BL.sum(axis=0)
                if of is rows:
                    lengths.append(loss_BL.cumsum(axis=1)[:, np.array(keeps) - 1])
                task.advance(len(loss_BL))
    right, *wrong = total / len(rows) * NATS_TO_BITS

    entropy_train = token_statistics(train_tokens_url).entropy_by_position() / store.codebooks
    entropy_val = token_statistics(val_tokens_url).entropy_by_position() / store.codebooks
    protocol: dict[str, Any] = {
        "prior": digest,
        "condition": prior.condition,
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
    for shuffled in wrong:
        permuted = {**protocol, "definition": f"as prior_loss_bits, condition permuted over images, seed {config.seed}"}
        metrics.append(statistic("prior_loss_bits_shuffled", float(shuffled.mean()), permuted))
    bytes_of_nats = NATS_TO_BITS * store.codebooks / 8
    condition_bytes = _condition_bytes(prior, store, rows)
    coded = {**protocol, "unit": "bytes", "condition_bytes": condition_bytes}
    for keep, bytes_N in zip(keeps, np.concatenate(lengths).T * bytes_of_nats, strict=True):
        each = statistic("prior_bytes_per_image", float(bytes_N.mean()), {**coded, "keep": keep}, keep)
        metrics.append(dataclasses.replace(each, standard_error=standard_error(bytes_N) if len(rows) > 1 else None))
    places = range(1, store.num_tokens + 1)
    series = [
        Series("prior_loss_by_position", "position", places, right.tolist(), protocol),
        Series("train_entropy_by_position", "position", places, entropy_train.tolist(), train_protocol),
        Series("val_entropy_by_position", "position", places, entropy_val.tolist(), protocol),
    ]
    code = PriorCode(right.cumsum() * store.codebooks / 8, condition_bytes, coded)
    return PriorStatistics(metrics, series, code)


def _condition_bytes(prior: PriorConfig, store: TokenStore, rows: np.ndarray) -> float:
    if prior.condition == "class":
        return float(np.log2(prior.num_classes)) / 8
    texts = store.texts() if prior.condition == "text" else []
    return float(np.mean([len((texts[row] or "").encode()) for row in rows])) if texts else 0.0


def _known_rows(prior: PriorConfig, store: TokenStore) -> np.ndarray:
    """Indexes of the rows whose condition the prior knows."""
    rows = np.arange(len(store))
    if prior.condition == "class":
        labels = store.labels()
        rows = rows[(labels >= 0) & (labels < prior.num_classes)]
    return rows


class HeldOutLoss:
    """What a worker holds to measure the prior's loss on rows of a token store."""

    def __init__(self, prior_url: str, tokens_url: str, device: str):
        self._prior, self._store = load_prior(prior_url, device), TokenStore.open(tokens_url)
        self._ids, self._labels, self._texts = self._store.ids(), self._store.labels(), self._store.texts()

    @torch.inference_mode()
    def __call__(self, part: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """The loss in nats of each row at each position [B, L], mean over codebooks, under the condition of the row beside
        it."""
        rows, givers = part
        labels = torch.from_numpy(self._labels[givers])
        labels_B, context = self._prior.conditions(labels, [self._texts[row] for row in givers])
        ids_B = torch.from_numpy(self._ids[rows].astype(np.int64)).to(self._prior.device)
        loss = self._prior.loss(ids_B, labels_B, context).double().cpu().numpy()
        return loss.reshape(len(rows), self._store.num_tokens, -1).mean(axis=2)


def _parts(rows: np.ndarray, givers: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size], givers[start : start + size]
