"""What the benchmark counts."""

import pytest
import torch

from flextok.bench.model import D12, Speed, agreement, agreement_table, forward_gflop


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
