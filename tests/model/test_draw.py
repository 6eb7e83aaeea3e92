"""The draw of an id from logits, beside the same law written down slowly."""

import numpy as np
import pytest
import torch

from flextok.model.sampling.config import DrawConfig
from flextok.model.sampling.draw import sample_id

LAWS = {
    "whole": {},
    "cold": {"temperature": 0.6},
    "top_k": {"top_k": 40},
    "top_p": {"top_p": 0.8},
    "top_p_of_few": {"top_p": 0.01},
    "min_p": {"min_p": 0.05},
    "all": {"temperature": 1.3, "top_k": 500, "top_p": 0.9, "min_p": 0.02},
}


def slow_draw(logits, uniform, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """One row in double precision, by a sort of all ids."""
    probability = np.exp((logits - logits.max()) / temperature)
    probability /= probability.sum()
    order = np.argsort(-probability, kind="stable")
    kept = order[: top_k or len(order)]
    if top_p is not None:
        share = probability[kept] / probability[kept].sum()
        kept = kept[np.cumsum(share) - share < top_p]
    if min_p is not None:
        kept = kept[probability[kept] >= min_p * probability[kept].max()]
    left = np.zeros_like(probability)
    left[kept] = probability[kept]
    cumulative = left.cumsum()
    return int(np.argmax(cumulative > uniform * cumulative[-1])), cumulative / cumulative[-1]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("vocabulary", "spread"), [(11, 1.0), (256, 2.0), (5000, 0.5), (5000, 4.0)])
def test_a_draw_is_the_inverse_of_the_kept_distribution(law: str, vocabulary: int, spread: float) -> None:
    logits = spread * torch.randn(64, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    uniform = torch.rand(64, generator=torch.Generator().manual_seed(1))
    drawn = sample_id(logits, uniform, DrawConfig(**LAWS[law])).tolist()
    differ = 0
    for row, found in enumerate(drawn):
        expected, cumulative = slow_draw(logits[row].double().numpy(), float(uniform[row]), **LAWS[law])
        if found != expected:  # only where the draw falls on an edge, to single precision
            differ += 1
            low, high = min(found, expected), max(found, expected)
            assert abs(cumulative[low] - float(uniform[row])) < 2e-6 and cumulative[high - 1] - cumulative[low] < 1e-12
    assert differ <= 1


def test_a_wide_nucleus_is_sorted_whole() -> None:
    logits = torch.zeros(3, 5000)
    logits[:2, :2500] = 1.0  # three quarters of the mass on half of the ids, more than are looked at first
    logits[2, 7] = 20.0  # a row whose nucleus is narrow
    uniform = torch.tensor([0.0, 1 - 2**-24, 0.5])
    assert sample_id(logits, uniform, DrawConfig(top_p=0.7)).tolist() == [0, 2499, 7]


@pytest.mark.parametrize("holder", [0, 255, 256, 999])
def test_ids_without_weight_are_never_drawn(holder: int) -> None:
    logits = torch.full((3, 1000), float("-inf"))
    logits[:, holder] = 3.0
    assert sample_id(logits, torch.tensor([0.0, 0.5, 1 - 2**-24])).tolist() == [holder] * 3


def test_rare_ids_keep_their_share() -> None:
    """One id in half a million has a tenth of the mass, the last ones the rest: a sum in single precision loses them."""
    vocabulary = 1 << 19
    logits = torch.zeros(1, vocabulary)
    logits[0, 0] = float(np.log(vocabulary / 9))
    uniform = 0.1 + 0.9 * (torch.arange(20) + 0.5) / 20
    drawn = sample_id(logits.expand(20, -1), uniform)
    expected = (uniform.double() - 0.1) / 0.9 * vocabulary
    assert (drawn - expected).abs().max() < 4


def test_equal_ids_are_kept_or_cut_together() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]]).expand(100, -1)
    uniform = (torch.arange(100) + 0.5) / 100
    for cut in ({"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.3}):
        assert sample_id(logits, uniform, DrawConfig(**cut)).unique().tolist() == [0, 1, 2]
