"""The autoregressive prior: a causal transformer over token ids, conditioned on a class, a caption or nothing.

Like LlamaGen and FlexTok's own class-conditional models (arXiv 2502.13967): a learned start vector carries the class
embedding, positions are learned, and the condition is dropped now and then so that guidance works. Captions come in
by cross-attention to the features of a frozen text encoder. Because the ids are ordered from coarse to fine,
generation may stop after any K of them.

Shapes: B images, L positions of C codebooks, N = L*C ids in position-major order, D width, H heads, V vocabulary,
T text positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.model.checkpoint import read_kind
from flextok.model.nn.attention import attend
from flextok.model.priors.base import PriorConfig
from flextok.model.priors.text import TextEncoder, TextFeatures, text_encoder
from flextok.model.rng import uniform_for
from flextok.model.weights import load_state

INIT_STD = 0.02


@dataclass
class _Cache:
    """Keys and values of the positions seen so far, one pair a block, [B,H,N,head_dim]; `length` are filled."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0


def _heads(x_BND: Tensor, head_dim: int) -> Tensor:
    return x_BND.unflatten(-1, (-1, head_dim)).transpose(1, 2)


class _Attention(nn.Module):
    """Attention with normalised queries and keys; `memory` None means causal self-attention."""

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def keys_values(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.key_value(x_BND).chunk(2, dim=-1)
        return F.layer_norm(_heads(key, self.head_dim), (self.head_dim,)), _heads(value, self.head_dim)

    def forward(
        self, x_BND: Tensor, key: Tensor, value: Tensor, causal: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        query = F.layer_norm(_heads(self.query(x_BND), self.head_dim), (self.head_dim,))
        # Under autocast the norms give float32 while the values are bfloat16.
        mixed = attend(query, key.to(query.dtype), value.to(query.dtype), mask, causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, config: PriorConfig):
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio * 2 / 3)
        self.attention = _Attention(width, config.head_dim)
        self.cross = _Attention(width, config.head_dim) if config.condition == "text" else None
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 if self.cross is None else 3)])
        self.dropout = nn.Dropout(config.dropout)

    def memory(self, context_BTD: Tensor) -> tuple[Tensor, Tensor]:
        assert self.cross is not None  # only a text-conditional prior has a context
        return self.cross.keys_values(context_BTD)

    def forward(
        self, x: Tensor, memory: tuple[Tensor, Tensor, Tensor] | None, cache: _Cache | None, index: int
    ) -> Tensor:
        normed = self.norms[0](x)
        key, value = self.attention.keys_values(normed)
        if cache is not None:
            stop = cache.length + x.shape[1]
            cache.keys[index][:, :, cache.length : stop] = key
            cache.values[index][:, :, cache.length : stop] = value
            key, value = cache.keys[index][:, :, :stop], cache.values[index][:, :, :stop]
        # With a cache the only query is the newest position, which sees everything before it.
        x = x + self.dropout(self.attention(normed, key, value, causal=cache is None))
        if self.cross is not None and memory is not None:
            key, value, mask = memory
            x = x + self.dropout(self.cross(self.norms[2](x), key, value, mask=mask))
        gate, linear = self.up(self.norms[1](x)).chunk(2, dim=-1)
        return x + self.dropout(self.down(F.silu(gate) * linear))


class Prior(nn.Module):
    """p(ids | condition), one id after the other. Make one with `Prior.create` or `load_prior`."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        self.digest = ""
        self.start = nn.Parameter(torch.zeros(config.width))
        self.positions = nn.Parameter(torch.zeros(config.sequence_length, config.width))
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.classes = nn.Embedding(config.num_classes, config.width) if config.condition == "class" else None
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size)
        self._encoder: TextEncoder | None = None
        if config.condition == "text":
            self.context = nn.Sequential(
                nn.Linear(config.context_width, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
            )
            # Always attended to, so that a dropped or empty caption still leaves something to attend to.
            self.null_context = nn.Parameter(torch.zeros(config.width))
        self._initialise()

    @classmethod
    def create(cls, config: PriorConfig, seed: int) -> "Prior":
        """A prior with random weights that depend on `seed` alone; its first loss is ln(V)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("head.") or name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1 or name in ("start", "null_context"):
                # As in GPT-2, what adds to the residual stream starts smaller the deeper the trunk.
                depth_scale = (2 * self.config.depth) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=INIT_STD * depth_scale)

    @property
    def text_encoder(self) -> TextEncoder:
        """The frozen encoder of captions, loaded when first needed; UsageError if its width is not the config's."""
        if self._encoder is None:
            self._encoder = text_encoder(self.config.text_encoder, self.start.device)
            if self._encoder.width != self.config.context_width:
                raise UsageError(
                    f"expected context_width {self._encoder.width}, the width of {self.config.text_encoder}, "
                    f"found {self.config.context_width}; set it in the prior's model"
                )
        return self._encoder

    def loss(
        self,
        ids: Tensor,
        labels_B: Tensor | None = None,
        context: TextFeatures | None = None,
        drop_B: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood of each id in nats, in the shape of `ids`; its mean is the loss a token.

        `ids`: int64 [B,L] or [B,L,C]. `labels_B`: int64 class indices. `context`: from `text_encoder.encode`.
        `drop_B`: bool, true where the condition is left out (the unconditional model of guidance).
        """
        flat_BN = ids.flatten(1)
        start_BD, memory = self._condition(len(ids), labels_B, context, drop_B)
        inputs = torch.cat([start_BD[:, None], self.embedding(flat_BN[:, :-1])], dim=1)
        logits_BNV = self._logits(inputs, memory)
        return F.cross_entropy(logits_BNV.float().transpose(1, 2), flat_BN, reduction="none").view(ids.shape)

    @torch.no_grad()
    def generate(
        self,
        labels: Sequence[int] | Tensor | None = None,
        text: Sequence[str] | None = None,
        keep: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        sample_ids: Sequence[int] | None = None,
        num: int | None = None,
    ) -> Tensor:
        """Sampled ids, int64 [B,K] ([B,K,C] with several codebooks), for `keep` = K positions (default all).

        One image for each of `labels` or `text` (whichever the prior is conditioned on; `num` images when on nothing).
        `temperature` 0 takes the likeliest id. `top_k` and `top_p` cut the tail. `guidance` g mixes the logits as
        u + g*(c - u) with those u of the dropped condition. Image i draws from a stream of its own, of `seed` and
        `sample_ids[i]` (default i), so neither the batch nor `keep` changes its ids.
        """
        count = self._count(labels, text, num)
        keep = self.config.num_tokens if keep is None else keep
        if not 1 <= keep <= self.config.num_tokens:
            raise ValueError(f"keep must lie in 1..{self.config.num_tokens}, got {keep}")
        if sample_ids is not None and len(sample_ids) != count:
            raise ValueError(f"expected {count} sample_ids, got {len(sample_ids)}")
        guided = guidance != 1.0 and self.config.condition != "none"
        start_BD, memory = self._generation_condition(labels, text, count, guided)
        stream_ids = range(count) if sample_ids is None else sample_ids
        uniforms_BN = uniform_for(seed, stream_ids, (self.config.sequence_length,)).to(start_BD.device)

        training = self.training
        self.eval()
        steps = keep * self.config.codebooks
        cache = self._empty_cache(len(start_BD), steps)
        x_BD, ids = start_BD, []
        for step in range(steps):
            logits_BV = self._logits(x_BD[:, None], memory, cache)[:, 0].float()
            if guided:
                conditional, unconditional = logits_BV.chunk(2)
                logits_BV = unconditional + guidance * (conditional - unconditional)
            ids.append(sample_id(logits_BV, uniforms_BN[:, step], temperature, top_k, top_p))
            x_BD = self.embedding(ids[-1]).repeat(2 if guided else 1, 1)
        self.train(training)
        sampled = torch.stack(ids, dim=1)
        return sampled.unflatten(1, (keep, -1)) if self.config.codebooks > 1 else sampled

    def _count(self, labels: Sequence[int] | Tensor | None, text: Sequence[str] | None, num: int | None) -> int:
        given = {"class": labels, "text": text}.get(self.config.condition)
        if self.config.condition == "none":
            if num is None:
                raise ValueError("an unconditional prior needs num, the number of images")
            return num
        if given is None:
            wanted = "labels" if self.config.condition == "class" else "text"
            raise ValueError(f"this prior is conditioned on {self.config.condition}: give {wanted}")
        return len(given)

    def _generation_condition(
        self, labels: Sequence[int] | Tensor | None, text: Sequence[str] | None, count: int, guided: bool
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]] | None]:
        """Start vectors and text memory of the conditional images, then, if `guided`, the unconditional ones."""
        device, twice = self.start.device, 2 if guided else 1
        drop_B = torch.arange(twice * count, device=device) >= count
        if self.config.condition == "class":
            labels_B = torch.as_tensor(labels, dtype=torch.long, device=device).repeat(twice)
            return self._condition(twice * count, labels_B, None, drop_B)
        if self.config.condition == "text":
            features = self.text_encoder.encode(list(text or ()) * twice).to(device)
            return self._condition(twice * count, None, features, drop_B)
        return self._condition(count, None, None, None)

    def _condition(
        self, count: int, labels_B: Tensor | None, context: TextFeatures | None, drop_B: Tensor | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]] | None]:
        start_BD = self.start.expand(count, -1)
        kept_B = torch.ones(count, dtype=torch.bool, device=start_BD.device) if drop_B is None else ~drop_B
        if self.classes is not None:
            if labels_B is None:
                raise ValueError("this prior is conditioned on class: give labels")
            _check_labels(labels_B, self.config.num_classes)
            return start_BD + self.classes(labels_B) * kept_B[:, None], None
        if self.config.condition != "text":
            return start_BD, None
        if context is None:
            raise ValueError("this prior is conditioned on text: give context")
        null_B1D = self.null_context.expand(count, 1, -1)
        memory_BTD = torch.cat([null_B1D, self.context(context.values)], dim=1)
        mask_BT = torch.cat([torch.ones_like(kept_B)[:, None], context.mask & kept_B[:, None]], dim=1)
        mask = mask_BT[:, None, None]
        return start_BD, [(*block.memory(memory_BTD), mask) for block in self.blocks if isinstance(block, _Block)]

    def _logits(
        self,
        inputs_BND: Tensor,
        memory: list[tuple[Tensor, Tensor, Tensor]] | None,
        cache: _Cache | None = None,
    ) -> Tensor:
        first = 0 if cache is None else cache.length
        x = inputs_BND + self.positions[first : first + inputs_BND.shape[1]]
        for index, block in enumerate(self.blocks):
            x = block(x, None if memory is None else memory[index], cache, index)
        if cache is not None:
            cache.length += inputs_BND.shape[1]
        return self.head(self.norm(x))

    def _empty_cache(self, batch: int, length: int) -> _Cache:
        config = self.config
        shape = (batch, config.width // config.head_dim, length, config.head_dim)
        keys, values = ([self.start.new_zeros(shape) for _ in range(config.depth)] for _ in range(2))
        return _Cache(keys, values)


def _check_labels(labels_B: Tensor, num_classes: int) -> None:
    # An index out of range would end a GPU program with an error that names nothing.
    if (
        labels_B.device.type == "cpu"
        and len(labels_B)
        and not 0 <= int(labels_B.min()) <= int(labels_B.max()) < num_classes
    ):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels_B.min())}..{int(labels_B.max())}")


def sample_id(
    logits_BV: Tensor, uniform_B: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Ids [B] drawn from softmax(logits / temperature) by inverting its distribution function at `uniform_B`.

    `top_k` keeps the k likeliest ids; `top_p` the fewest whose probability reaches p. Temperature 0 is argmax.
    """
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(f"expected temperature >= 0, top_k >= 1, 0 < top_p <= 1; got {temperature}, {top_k}, {top_p}")
    if temperature == 0:
        return logits_BV.argmax(-1)
    scaled = logits_BV / temperature
    if top_k is not None and top_k < scaled.shape[-1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[:, -1:], float("-inf"))
    # Double precision, since float32 sums over a large vocabulary lose the rare ids.
    probabilities = scaled.double().softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p
        probabilities = probabilities.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    cumulative = probabilities.cumsum(-1)
    target = uniform_B.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits_BV.shape[-1] - 1)


def load_prior(path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Prior:
    """The prior stored at `path`, in evaluation mode; raises UsageError when something else is stored there."""
    checkpoint = read_kind(str(path), "prior")
    prior = Prior.create(parse_config(PriorConfig, checkpoint.config, f"{path}/config.yaml"), seed=0)
    load_state(prior, checkpoint.state, checkpoint.url)
    prior.digest = checkpoint.digest
    return prior.to(device, dtype).eval()
