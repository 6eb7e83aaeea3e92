"""Drawing that goes from stage to stage, and images that leave it on the way."""

import pytest
import torch
from test_prior import CONDITION, CONFIGS, make_prior

from flextok.errors import FlextokError
from flextok.model.priors.base import Prior
from flextok.model.sampling.config import DrawConfig
from flextok.model.sampling.draw import NONE, sample_id

STOPS = [1, 2, 5, 6]


def law_of(kind: str) -> DrawConfig:
    return DrawConfig(guidance=1.0 if CONFIGS[kind].condition == "none" else 2.5, last_temperature=0.5)


def without_stages_of_its_own(kind: str) -> Prior:
    """One that goes on from stage to stage as kinds do by default."""
    prior = make_prior(kind)
    prior.stages = Prior.stages.__get__(prior)  # type: ignore[method-assign]
    prior.sample = type(prior).sample.__get__(make_prior(kind))  # type: ignore[method-assign]
    return prior


@pytest.mark.parametrize("make", [make_prior, without_stages_of_its_own])
@pytest.mark.parametrize("kind", CONFIGS)
def test_each_stage_is_the_beginning_of_the_whole(kind: str, make) -> None:
    whole = make_prior(kind).generate(**CONDITION[kind], seed=5, **dict(law_of(kind)))
    found = list(make(kind).generate_in_stages(STOPS, law_of(kind), **CONDITION[kind], seed=5))
    assert [ids.shape[1] for ids in found] == STOPS
    assert all(torch.equal(ids, whole[:, : ids.shape[1]]) for ids in found)


@pytest.mark.parametrize("make", [make_prior, without_stages_of_its_own])
@pytest.mark.parametrize("kind", CONFIGS)
def test_those_that_go_on_are_not_changed_by_those_that_leave(kind: str, make) -> None:
    whole = make_prior(kind).generate(**CONDITION[kind], seed=5, **dict(law_of(kind)))
    stages = make(kind).generate_in_stages(STOPS, law_of(kind), **CONDITION[kind], seed=5)
    next(stages)
    assert torch.equal(stages.send(torch.tensor([0, 2])), whole[[0, 2], :2])
    assert torch.equal(stages.send(torch.tensor([1])), whole[[2], :5])
    assert torch.equal(next(stages), whole[[2]])
    with pytest.raises(StopIteration):
        next(stages)


@pytest.mark.parametrize("kind", ["class", "text", "llama"])
def test_each_image_may_have_a_seed_of_its_own(kind: str) -> None:
    prior, guided = make_prior(kind), {"guidance": 2.5}
    found = prior.generate(**CONDITION[kind], seed=[5, 7, 5], sample_ids=[4, 4, 1], **guided)
    for row, (seed, number) in enumerate([(5, 4), (7, 4), (5, 1)]):
        own = {name: values[row : row + 1] for name, values in CONDITION[kind].items()}
        assert torch.equal(prior.generate(**own, seed=seed, sample_ids=[number], **guided)[0], found[row])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("law", [DrawConfig(), DrawConfig(temperature=0), DrawConfig(top_k=3, top_p=0.9, min_p=0.1)])
def test_logits_that_are_no_numbers_give_no_id(broken: float, law: DrawConfig) -> None:
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(0))
    expected = sample_id(logits, torch.tensor([0.2, 0.5, 1 - 2**-24]), law)
    logits[1, 400] = broken
    found = sample_id(logits, torch.tensor([0.2, 0.5, 1 - 2**-24]), law)
    assert found[1] == NONE and torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("kind", ["class", "llama"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_damaged_prior_says_so(kind: str, temperature: float) -> None:
    prior = make_prior(kind)
    with torch.no_grad():
        prior.head.weight[3] = torch.nan
    with pytest.raises(FlextokError, match="expected finite logits, found NaN or infinity"):
        prior.generate(**CONDITION[kind], temperature=temperature)
