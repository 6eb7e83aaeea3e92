"""The trunk that samples, beside the forward that is trained."""

import math

import pytest
import torch
from test_prior import CONDITION, CONFIGS, make_prior
from torch.nn.functional import cross_entropy

from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.sampling.trunk import CachedTrunk

IDS = torch.randint(11, (3, 12), generator=torch.Generator().manual_seed(3))


def is_conditional(kind: str) -> bool:
    return CONFIGS[kind].condition != "none"


def condition_of(prior: Prior, kind: str):
    labels = torch.tensor(CONDITION[kind]["labels"]) if "labels" in CONDITION[kind] else None
    return labels, prior.text_encoder.encode(CONDITION[kind]["text"]) if kind == "text" else None


@torch.no_grad()
def trained_logits(prior: Prior, kind: str, ids: torch.Tensor, drop: bool) -> torch.Tensor:
    """[B,N,V] of the forward that `loss` runs."""
    seen = []
    hook = prior.head.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    prior.loss(ids, *condition_of(prior, kind), torch.full((len(ids),), drop))
    hook.remove()
    return seen[0]


@torch.no_grad()
def sampled_logits(prior: Prior, kind: str, flat: torch.Tensor, trunk: CachedTrunk, at_once: int = 1) -> torch.Tensor:
    """[B,N,V] of the conditional images then of the unconditional ones, made one by one after the first `at_once`."""
    start, memory = prior._generation_condition(
        condition_of(prior, kind)[0], CONDITION[kind].get("text"), len(flat), is_conditional(kind)
    )
    twice = len(start) // len(flat)
    inputs = torch.cat([start[:, None], prior.embedding(flat[:, :-1]).repeat(twice, 1, 1)], dim=1)
    cache = trunk.new_cache(len(start), flat.shape[1])
    parts = [inputs[:, :at_once], *inputs[:, at_once:].split(1, dim=1)]
    return torch.stack([trunk.logits(trunk.advance(part, memory, cache)) for part in parts], dim=1)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("rows", [None, 6])
def test_every_position_has_the_logits_of_the_training_forward(kind: str, rows: int | None) -> None:
    prior = make_prior(kind)
    flat = IDS[:, : prior.config.sequence_length]
    halves = [
        trained_logits(prior, kind, flat.reshape(3, prior.config.num_tokens, -1).squeeze(-1), drop)
        for drop in (False, True)
    ]
    expected = torch.cat(halves[: 2 if is_conditional(kind) else 1])
    trunk = CachedTrunk(prior, rows)
    assert (sampled_logits(prior, kind, flat, trunk) - expected).abs().max() < 1e-5
    assert (sampled_logits(prior, kind, flat, trunk, at_once=4) - expected[:, 3:]).abs().max() < 1e-5


def test_products_in_bfloat16_cost_less_than_half_a_percent_of_the_loss() -> None:
    sizes = {"width": 64, "depth": 3, "head_dim": 32, "num_tokens": 24, "vocab_size": 500}
    prior = Prior.create(PriorConfig(**sizes, condition="class", num_classes=3), seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    ids = prior.generate(**CONDITION["class"], seed=2)
    trunk = CachedTrunk(prior, rows=6, dtype=torch.bfloat16)
    exact, rounded = (
        cross_entropy(logits[:3].transpose(1, 2), ids).item()
        for logits in (trained_logits(prior, "class", ids, False), sampled_logits(prior, "class", ids, trunk))
    )
    assert exact < 0.8 * math.log(500)  # there is something to lose
    assert 0 < abs(rounded / exact - 1) < 0.005


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_prepared_prior_draws_the_same(kind: str) -> None:
    guidance = 2.0 if is_conditional(kind) else 1.0
    before = make_prior(kind).generate(**CONDITION[kind], seed=4, guidance=guidance)
    prior = make_prior(kind).prepare(rows=6)
    assert torch.equal(prior.generate(**CONDITION[kind], seed=4, guidance=guidance), before)
    assert not any(parameter.requires_grad for parameter in prior.parameters())


def test_each_caption_is_encoded_once() -> None:
    prior = make_prior("text")
    encoder, seen = prior.text_encoder, []
    encode = encoder.encode
    encoder.encode = lambda texts: seen.extend(texts) or encode(texts)  # type: ignore[method-assign]
    prior.generate(**CONDITION["text"], guidance=3.0)
    assert seen == CONDITION["text"]["text"]
