"""The autoregressive prior: a causal transformer over token ids, conditioned on a class, a caption or nothing.

Like LlamaGen and FlexTok's own class-conditional models (arXiv 2502.13967): a learned start vector carries the class
embedding, positions are learned, and the condition is dropped now and then so that guidance works. Captions come in
by cross-attention to the features of a frozen text encoder. Because the ids are ordered from coarse to fine,
generation may stop after any K of them.

Shapes: B images, L positions of C codebooks, N = L*C ids in position-major order, D width, H heads, V vocabulary,
T text positions.
"""

from collections.abc import Generator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flextok.model.nn.attention import attend
from flextok.model.nn.dropout import Dropout
from flextok.model.nn.flops import block_flops, causal_pairs, linear_flops
from flextok.model.priors.base import Prior, Sampling
from flextok.model.priors.config import AutoregressiveConfig, PriorConfig
from flextok.model.rng import SampleRng, uniform_for
from flextok.model.sampling.config import way
from flextok.model.sampling.draw import sample_id
from flextok.model.sampling.trunk import CachedTrunk, Memory
from flextok.model.text import TextFeatures

INIT_STD = 0.02


def _heads(x_BND: Tensor, head_dim: int) -> Tensor:
    return x_BND.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def _nll(logits_BNV: Tensor, ids: Tensor) -> Tensor:
    """[B,N]."""
    return F.cross_entropy(logits_BNV.transpose(1, 2), ids.flatten(1), reduction="none")


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
    forward_methods = ("memory",)  # as in `ModulatedBlock`

    def __init__(self, config: AutoregressiveConfig):
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio * 2 / 3)
        self.attention = _Attention(width, config.head_dim)
        self.cross = _Attention(width, config.head_dim) if config.condition == "text" else None
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 if self.cross is None else 3)])
        self.dropout = Dropout(0.0)  # as much as the training says, see `Prior.set_dropout`

    def memory(self, context_BTD: Tensor) -> tuple[Tensor, Tensor]:
        assert self.cross is not None  # only a text-conditional prior has a context
        return self.cross.keys_values(context_BTD)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        normed = self.norms[0](x)
        x = x + self.dropout(self.attention(normed, *self.attention.keys_values(normed), causal=True))
        if self.cross is not None and memory is not None:
            key, value, mask = memory
            x = x + self.dropout(self.cross(self.norms[2](x), key, value, mask=mask))
        gate, linear = self.up(self.norms[1](x)).chunk(2, dim=-1)
        return x + self.dropout(self.down(F.silu(gate) * linear))


class AutoregressivePrior(Prior):
    """p(ids | condition), one id after the other; its first loss is ln(V)."""

    def __init__(self, config: PriorConfig, model: AutoregressiveConfig):
        super().__init__(config)
        self.model = model
        self._has_z_loss = False
        self.trunk: CachedTrunk | None = None  # of a prepared prior; else one is made for each call
        self._build(config, model)
        self._initialise()

    def _build(self, config: PriorConfig, model: AutoregressiveConfig) -> None:
        self.start = nn.Parameter(torch.zeros(model.width))
        self.positions = nn.Parameter(torch.zeros(config.sequence_length, model.width))
        self.embedding = nn.Embedding(config.vocab_size, model.width)
        self.classes = nn.Embedding(config.num_classes, model.width) if config.condition == "class" else None
        self.blocks = nn.ModuleList([_Block(model) for _ in range(model.depth)])
        self.norm = nn.LayerNorm(model.width)
        self.head = nn.Linear(model.width, config.vocab_size)
        if config.condition == "text":
            self.context = nn.Sequential(
                nn.Linear(model.context_width, model.width), nn.SiLU(), nn.Linear(model.width, model.width)
            )
            # Always attended to, so that a dropped or empty caption still leaves something to attend to.
            self.null_context = nn.Parameter(torch.zeros(model.width))

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("head.") or name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1 or name in ("start", "null_context"):
                # As in GPT-2, what adds to the residual stream starts smaller the deeper the trunk.
                depth_scale = (2 * self.model.depth) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=INIT_STD * depth_scale)

    def loss(
        self,
        ids: Tensor,
        labels_B: Tensor | None = None,
        context: TextFeatures | None = None,
        drop_B: Tensor | None = None,
    ) -> Tensor:
        """See `Prior.loss`."""
        logits_BNV = self._logits(ids, labels_B, context, drop_B)
        return _nll(logits_BNV, ids).view(ids.shape)

    def training_step(
        self, ids: Tensor, labels_B: Tensor | None, context: TextFeatures | None, drop_B: Tensor | None, rng: SampleRng
    ) -> dict[str, Tensor]:
        """`nll`, and in training with a z-loss (PaLM, arXiv 2204.02311) `z`, the mean over ids of log(Z)^2."""
        logits_BNV = self._logits(ids, labels_B, context, drop_B)
        losses = {"nll": _nll(logits_BNV, ids).mean(dim=1)}
        if self.training and self._has_z_loss:
            losses["z"] = logits_BNV.logsumexp(dim=-1).square().mean(dim=1)
        return losses

    def add_z_loss(self) -> None:
        """See `Prior.add_z_loss`."""
        self._has_z_loss = True

    def _logits(
        self, ids: Tensor, labels_B: Tensor | None, context: TextFeatures | None, drop_B: Tensor | None
    ) -> Tensor:
        """[B,N,V] in float32, each of the ids before it."""
        flat_BN = ids.flatten(1)
        start_BD, memory = self._condition(len(ids), labels_B, context, drop_B)
        x_BND = self.placed(torch.cat([start_BD[:, None], self.embedding(flat_BN[:, :-1])], dim=1), 0)
        return self.head(self.norm(self._through_blocks(x_BND, memory))).float()

    def _through_blocks(self, x_BND: Tensor, memory: Memory | None) -> Tensor:
        for index, block in enumerate(self.blocks):
            x_BND = block(x_BND, None if memory is None else memory[index])
        return x_BND

    def flops(self) -> float | None:
        """See `Prior.flops`; not known with captions, whose lengths differ."""
        if self.config.condition == "text":
            return None
        width, length = self.model.width, self.config.sequence_length
        hidden = int(width * self.model.mlp_ratio * 2 / 3)
        trunk = len(self.blocks) * block_flops(width, hidden, length, causal_pairs(length))
        return trunk + linear_flops(length, width, self.config.vocab_size)

    def placed(self, x_RND: Tensor, start: int) -> Tensor:
        """Inputs of the positions from `start` on, with what tells the trunk where they are."""
        return x_RND + self.positions[start : start + x_RND.shape[1]]

    def compared(self, x_RNSHd: Tensor, start: int) -> Tensor:
        """Queries and keys of the positions from `start` on, [R,N,2,heads,head_dim], as attention compares them."""
        return F.layer_norm(x_RNSHd, (self.model.head_dim,))

    def prepare(self, rows: int, dtype: torch.dtype = torch.float32) -> "AutoregressivePrior":
        """See `Prior.prepare`."""
        super().prepare(rows, dtype)
        self.trunk = CachedTrunk(self, rows, dtype)
        return self

    def sample(self, count: int, labels_B: Tensor | None, texts: Sequence[str] | None, sampling: Sampling) -> Tensor:
        """See `Prior.sample`."""
        return next(self.stages(count, labels_B, texts, sampling, (sampling.keep,)))

    @torch.no_grad()
    def stages(
        self,
        count: int,
        labels_B: Tensor | None,
        texts: Sequence[str] | None,
        sampling: Sampling,
        stops: Sequence[int],
    ) -> Generator[Tensor, Tensor | None, None]:
        """See `Prior.stages`; no position is computed twice."""
        trunk, law, codebooks = self.trunk or CachedTrunk(self), sampling.law, self.config.codebooks
        guided = law.guidance != 1.0 and self.config.condition != "none"
        twice = 2 if guided else 1
        start_RD, memory = self._generation_condition(labels_B, texts, count, guided)
        uniforms_BN = uniform_for(sampling.seed, sampling.sample_ids, (self.config.sequence_length,)).to(self.device)
        ids_BN = torch.empty(count, stops[-1] * codebooks, dtype=torch.long, device=self.device)
        done = 0 if sampling.prefix is None else sampling.prefix.shape[1] * codebooks
        if sampling.prefix is not None:
            ids_BN[:, :done] = sampling.prefix.flatten(1)
        inputs_RND = torch.cat([start_RD[:, None], self.embedding(ids_BN[:, :done]).repeat(twice, 1, 1)], dim=1)
        cache = trunk.new_cache(len(start_RD), ids_BN.shape[1])
        for stop in stops:
            for step in range(done, stop * codebooks):
                at = way(step // codebooks, self.config.num_tokens)
                hidden_RD = trunk.advance(inputs_RND, memory, cache)
                logits_BV = _mixed(trunk, hidden_RD, law.guidance_at(at)) if guided else trunk.logits(hidden_RD)
                ids_BN[:, step] = sample_id(logits_BV, uniforms_BN[:, step], law, at)
                inputs_RND = self.embedding(ids_BN[:, step : step + 1].clamp(min=0)).repeat(twice, 1, 1)
            done = max(done, stop * codebooks)
            so_far_BN = ids_BN[:, : stop * codebooks]
            kept_B = yield so_far_BN.unflatten(1, (stop, -1)) if codebooks > 1 else so_far_BN
            if kept_B is not None:
                kept_R = torch.cat([kept_B + half * len(ids_BN) for half in range(twice)])
                ids_BN, uniforms_BN, inputs_RND = ids_BN[kept_B], uniforms_BN[kept_B], inputs_RND[kept_R]
                cache.select(kept_R)
                if memory is not None:
                    memory = [(key[kept_R], value[kept_R], mask[kept_R]) for key, value, mask in memory]

    def _generation_condition(
        self, labels_B: Tensor | None, texts: Sequence[str] | None, count: int, guided: bool
    ) -> tuple[Tensor, Memory | None]:
        """Start vectors and text memory of the conditional images, then, if `guided`, the unconditional ones."""
        context = None if texts is None else self.text_encoder.encode(texts).to(self.device)
        start_BD, memory = self._condition(count, labels_B, context, None)
        if not guided:
            return start_BD, memory
        start_RD = torch.cat([start_BD, self.start.expand(count, -1)])
        return start_RD, None if memory is None else [_with_unconditional(*block) for block in memory]

    def _condition(
        self, count: int, labels_B: Tensor | None, context: TextFeatures | None, drop_B: Tensor | None
    ) -> tuple[Tensor, Memory | None]:
        start_BD = self.start.expand(count, -1)
        kept_B = torch.ones(count, dtype=torch.bool, device=start_BD.device) if drop_B is None else ~drop_B
        if self.classes is not None:
            if labels_B is None:
                raise ValueError("this prior is conditioned on class: give labels")
            check_labels(labels_B, self.config.num_classes)
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


def _mixed(trunk: CachedTrunk, hidden_RD: Tensor, guidance: float) -> Tensor:
    """Logits [B,V] of the guided images; the vocabulary's product is made for those that matter alone."""
    if guidance == 1.0:
        return trunk.logits(hidden_RD.chunk(2)[0])
    conditional, unconditional = trunk.logits(hidden_RD).chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def _with_unconditional(key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The memory of a block for its images, then for the same ones without their captions: these see the null alone."""
    null_only = torch.zeros_like(mask)
    null_only[..., 0] = True
    return key.repeat(2, 1, 1, 1), value.repeat(2, 1, 1, 1), torch.cat([mask, null_only])


def check_labels(labels_B: Tensor, num_classes: int) -> None:
    """Raises ValueError for a label that is no class; on a CPU, since elsewhere a look costs a wait."""
    # An index out of range would end a GPU program with an error that names nothing.
    if (
        labels_B.device.type == "cpu"
        and len(labels_B)
        and not 0 <= int(labels_B.min()) <= int(labels_B.max()) < num_classes
    ):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels_B.min())}..{int(labels_B.max())}")
