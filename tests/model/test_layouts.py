"""Layouts of frozen weights: whichever is chosen, the product is the same."""

import pytest
import torch
import torch.nn.functional as F

from flextok.model.nn import layouts


def weights(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(96, 64, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("biased", [False, True])
def test_a_layout_multiplies_any_number_of_rows(layout: layouts.Layout, dtype: torch.dtype, biased: bool) -> None:
    weight = weights(dtype)[0]
    bias = torch.arange(96).to(dtype) if biased else None
    product = layout(weight, bias, 2)
    for rows in (1, 2, 33):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows)).to(dtype)
        found, expected = product(x), F.linear(x, weight, bias)
        assert found.is_contiguous() and found.shape == (rows, 96)
        assert (found - expected).abs().max() <= layouts.TOLERANCE[dtype] * expected.abs().max()


def slower(weight, bias, rows):
    return lambda x: torch.stack([F.linear(x, weight, bias) for _ in range(200)])[0]


def gone(weight, bias, rows):
    return torch.ops.mkldnn._an_operator_of_another_version(weight)


def wrong(weight, bias, rows):
    result = torch.zeros(rows, len(weight))
    return lambda x: result


def test_the_fastest_right_layout_is_taken(monkeypatch) -> None:
    """A layout that is wrong, or whose operator this torch has not, is passed over, however fast."""
    monkeypatch.setattr(layouts, "LAYOUTS", (layouts.plain, wrong, gone))
    few, x = weights(torch.float32), torch.ones(2, 64)
    assert torch.equal(layouts.fastest(few, [None] * 3, 2)[1](x), F.linear(x, few[1]))
    monkeypatch.setattr(layouts, "plain", slower)
    monkeypatch.setattr(layouts, "LAYOUTS", (slower, wrong, gone, layouts.columns))
    chosen = layouts.fastest(few, [None] * 3, 2)
    assert [product.__qualname__ for product in chosen] == ["columns.<locals>.<lambda>"] * 3
