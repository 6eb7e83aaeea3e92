"""What the benchmark counts."""

import pytest
import torch

from flextok.bench.model import D12, Speed, agreement, agreement_table, forward_gflop
from flextok.bench.prior import Size, change_of_loss, medians, ours


def test_operations_of_the_published_size() -> None:
    assert forward_gflop(D12, 256, 256, full=False) == pytest.approx(94.2, abs=0.05)
    assert forward_gflop(D12, 256, 256, full=True) == pytest.approx(96.6, abs=0.05)


def test_share_of_peak_and_agreement() -> None:
    row = Speed("encode", torch.float32, images_per_s=2.0, gflop_per_image=94.2, peak_gflops=376.8).row()
    assert row == "| encode | float32 | 2.00 | 94.2 | 50% |"
    exact, rounded = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 5]])
    assert agreement(exact, rounded) == [1.0, 0.5]
    heading, _, _, _, table, _ = agreement_table("toy", [1.0, 0.5])
    assert "75.0% over all positions" in heading and table.startswith("| 0 | 100% | 50% |")


def test_contenders_draw_in_both_orders() -> None:
    drawn: list[str] = []
    seconds = medians({name: lambda name=name: drawn.append(name) for name in ("ours", "theirs")}, rounds=1)
    assert drawn == ["ours", "theirs", "ours", "theirs", "theirs", "ours"]  # the first two are not timed
    assert set(seconds) == {"ours", "theirs"} and min(seconds.values()) > 0


def test_the_measured_prior_draws_ids_and_its_loss_is_compared() -> None:
    prior = Size(32, 1, 16, (2,)).prior(length=3)
    assert torch.equal(ours(prior, 2, torch.float32)(), prior.generate(num=2, seed=0))  # type: ignore[arg-type]
    assert change_of_loss(prior, 2, torch.float32) == 0
    assert 0 < abs(change_of_loss(prior, 2, torch.bfloat16)) < 0.005
