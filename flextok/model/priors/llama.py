"""The prior of kind `llama`: what `AutoregressivePrior` is, with the transformer of Llama (arXiv 2302.13971).

No published causal language model has the other kind's learned positions, biases and normalised queries; this one is such a
model, so that `flextok export-prior` can write it as one. Its vocabulary is V ids, then a token for each of C classes and one
for no class; a sequence begins with one of these.

Shapes as in `autoregressive`; d is head_dim.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flextok.model.nn.attention import attend
from flextok.model.nn.dropout import Dropout
from flextok.model.priors.autoregressive import AutoregressivePrior, check_labels
from flextok.model.priors.config import AutoregressiveConfig, LlamaConfig, PriorConfig
from flextok.model.sampling.trunk import Memory
from flextok.model.text import TextFeatures

NORM_EPS = 1e-5
ROPE_THETA = 10_000.0


class _Attention(nn.Module):
    """Causal self-attention with rotated queries and keys."""

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BND: Tensor, turns_2Nd: Tensor) -> Tensor:
        parts = (self.query(x_BND), *self.key_value(x_BND).chunk(2, dim=-1))
        queries, keys, values = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        # Under autocast the rotation gives float32 while the values are bfloat16.
        queries, keys = (rotated(part, turns_2Nd[:, :, None]).to(values.dtype) for part in (queries, keys))
        mixed = attend(*(part.transpose(1, 2) for part in (queries, keys, values)), causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Pre-norm residual block; its parts are named as those of the other kind, for one trunk samples from both."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio * 2 / 3)
        self.attention = _Attention(width, config.head_dim)
        self.cross = None
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.norms = nn.ModuleList([nn.RMSNorm(width, eps=NORM_EPS) for _ in range(2)])
        self.dropout = Dropout(0.0)  # as much as the training says, see `Prior.set_dropout`

    def forward(self, x: Tensor, turns_2Nd: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norms[0](x), turns_2Nd))
        gate, linear = self.up(self.norms[1](x)).chunk(2, dim=-1)
        return x + self.dropout(self.down(F.silu(gate) * linear))


class LlamaPrior(AutoregressivePrior):
    """p(ids | class), one id after the other; its first loss is ln(V)."""

    turns: Tensor

    def _build(self, config: PriorConfig, model: AutoregressiveConfig) -> None:
        assert isinstance(model, LlamaConfig)
        self.embedding = nn.Embedding(config.vocab_size + config.num_classes + 1, model.width)
        self.blocks = nn.ModuleList([_Block(model) for _ in range(model.depth)])
        self.norm = nn.RMSNorm(model.width, eps=NORM_EPS)
        self.head = nn.Linear(model.width, config.vocab_size, bias=False)
        self.register_buffer("turns", turns_of(config.sequence_length, model.head_dim), persistent=False)

    def _through_blocks(self, x_BND: Tensor, memory: Memory | None) -> Tensor:
        for block in self.blocks:
            x_BND = block(x_BND, self.turns[:, : x_BND.shape[1]])
        return x_BND

    def placed(self, x_RND: Tensor, start: int) -> Tensor:
        """The inputs as they are: where they stand is told by rotation."""
        return x_RND

    def compared(self, x_RNSHd: Tensor, start: int) -> Tensor:
        """Queries and keys rotated by their positions."""
        return rotated(x_RNSHd, self.turns[:, start : start + x_RNSHd.shape[1], None, None])

    def _generation_condition(
        self, labels_B: Tensor | None, texts: Sequence[str] | None, count: int, guided: bool
    ) -> tuple[Tensor, Memory | None]:
        first_BD, _ = self._condition(count, labels_B, None, None)
        return (torch.cat([first_BD, self._first_tokens(count, None)]) if guided else first_BD), None

    def _condition(
        self, count: int, labels_B: Tensor | None, context: TextFeatures | None, drop_B: Tensor | None
    ) -> tuple[Tensor, Memory | None]:
        if self.config.condition == "none":
            return self._first_tokens(count, None), None
        if labels_B is None:
            raise ValueError("this prior is conditioned on class: give labels")
        check_labels(labels_B, self.config.num_classes)
        dropped = labels_B if drop_B is None else labels_B.masked_fill(drop_B, self.config.num_classes)
        return self._first_tokens(count, dropped), None

    def _first_tokens(self, count: int, classes_B: Tensor | None) -> Tensor:
        """Embeddings [B,D] of the tokens of classes, of which the last, C, is no class."""
        if classes_B is None:
            classes_B = torch.full((count,), self.config.num_classes, device=self.device)
        return self.embedding(self.config.vocab_size + classes_B)


def turns_of(positions: int, head_dim: int) -> Tensor:
    """Cosines and sines [2,N,d/2] of the angles by which positions are told: position times theta^(-2i/d)."""
    halves = torch.arange(0, head_dim, 2, device="cpu", dtype=torch.float32)
    angles = torch.arange(positions, device="cpu", dtype=torch.float32)[:, None] * ROPE_THETA ** (-halves / head_dim)
    return torch.stack([angles.cos(), angles.sin()])


def rotated(x: Tensor, turns: Tensor) -> Tensor:
    """`x` [...,d] with element i of its first half and i of its second turned as a point of the plane.

    `turns` are cosines and sines, [2,...,d/2].
    """
    first, second = x.chunk(2, dim=-1)
    cosine, sine = turns
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
