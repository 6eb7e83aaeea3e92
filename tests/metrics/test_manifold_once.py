"""Distances are computed once for all metrics of neighbours, and balls of a reference once for all that is held to it."""

import gc

import numpy as np
import pytest

from flextok.metrics import manifold
from flextok.metrics.base import SET_METRICS

FOUR = ("precision", "recall", "density", "coverage")


def test_four_metrics_of_three_sets_share_their_distances(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    reference, *sets = (random.normal(size=(30, 4)) + shift for shift in (0, 0, 1, 2))
    passes = []
    measure = manifold._distances
    monkeypatch.setattr(manifold, "_distances", lambda *pair: passes.append(pair) or measure(*pair))
    values = [[SET_METRICS[name].compute(reference, images) for name in FOUR] for images in sets]
    # the balls of the reference; of each set its balls, and both ways between the two
    assert len(passes) == 1 + 3 * len(sets)
    alone = [[SET_METRICS[name].compute(reference.copy(), images.copy()) for name in FOUR] for images in sets]
    assert values == alone
    del reference, sets, passes[:]
    gc.collect()
    assert not manifold._found


@pytest.mark.parametrize("name", FOUR)
def test_the_fewest_images_have_a_number(name: str):
    metric = SET_METRICS[name]
    few = np.random.default_rng(1).normal(size=(metric.fewest, 3))
    assert metric.compute(few, few.copy()) > 0
    with pytest.raises(ValueError, match="expected more than"):
        metric.compute(few[:-1], few[:-1])
