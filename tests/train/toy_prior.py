"""A prior of another kind: a table of how often an id follows another one, counted over all of training."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from flextok.model.priors.base import Prior, Sampling
from flextok.model.priors.config import PRIORS, PriorConfig, PriorModelConfig
from flextok.model.rng import SampleRng, uniform_for
from flextok.model.sampling.config import way
from flextok.model.sampling.draw import sample_id
from flextok.model.text import TextFeatures


@PRIORS.register
class BigramConfig(PriorModelConfig):
    """A table for each class: one row for the first id, one for each id before the next."""

    kind: Literal["bigram"] = "bigram"
    smoothing: float = 0.01

    def build(self, config: PriorConfig) -> "BigramPrior":
        return BigramPrior(config, self)


class BigramPrior(Prior):
    """p(id | the one before, class), a running mean of one-hot rows held in a buffer, and a learned temperature."""

    shares: Tensor

    def __init__(self, config: PriorConfig, model: BigramConfig):
        super().__init__(config)
        self.smoothing = model.smoothing
        self.sharpness = nn.Parameter(torch.ones(()))
        vocabulary = config.vocab_size
        self.register_buffer("shares", torch.zeros(config.num_classes or 1, vocabulary + 1, vocabulary))

    def loss(
        self,
        ids: Tensor,
        labels_B: Tensor | None = None,
        context: TextFeatures | None = None,
        drop_B: Tensor | None = None,
    ) -> Tensor:
        logits = self._logits(self._before(ids), self._rows(labels_B, len(ids)))
        return nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none")

    def training_step(
        self, ids: Tensor, labels_B: Tensor | None, context: TextFeatures | None, drop_B: Tensor | None, rng: SampleRng
    ) -> dict[str, Tensor]:
        losses = super().training_step(ids, labels_B, context, drop_B, rng)
        place = (self._rows(labels_B, len(ids))[:, None].expand_as(ids), self._before(ids), ids)
        seen = torch.zeros_like(self.shares).index_put_(place, torch.ones(ids.shape), accumulate=True)
        self.shares.lerp_(seen / len(ids), 0.1)
        return losses

    def sample(self, count: int, labels_B: Tensor | None, texts: Sequence[str] | None, sampling: Sampling) -> Tensor:
        uniforms = uniform_for(sampling.seed, sampling.sample_ids, (self.config.num_tokens,))
        before, drawn = torch.full((count, 1), self.config.vocab_size), []
        if sampling.prefix is not None and sampling.prefix.shape[1]:
            before, drawn = sampling.prefix[:, -1:], list(sampling.prefix.unbind(1))
        for step in range(len(drawn), sampling.keep):
            logits = self._logits(before, self._rows(labels_B, count))[:, 0]
            at = way(step, self.config.num_tokens)
            ids = sample_id(logits, uniforms[:, step], sampling.law, at)
            drawn.append(ids)
            before = ids[:, None]
        return torch.stack(drawn, dim=1)

    def _rows(self, labels_B: Tensor | None, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.long) if labels_B is None else labels_B

    def _before(self, ids: Tensor) -> Tensor:
        return torch.cat([torch.full_like(ids[:, :1], self.config.vocab_size), ids[:, :-1]], dim=1)

    def _logits(self, before: Tensor, rows: Tensor) -> Tensor:
        shares = self.shares[rows[:, None], before] + self.smoothing / self.config.vocab_size
        return self.sharpness * (shares / shares.sum(-1, keepdim=True)).log()
