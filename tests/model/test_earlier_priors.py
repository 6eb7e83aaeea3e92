"""Priors whose config holds settings of the training and names no kind, as they were written up to commit c63be65.

Each is what that code wrote, and the ids below are what that code drew from it.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

import flextok
from flextok.model.describe import describe_checkpoint
from flextok.model.priors.config import AutoregressiveConfig
from flextok.provenance import read_provenance

EARLIER = Path(__file__).parent.parent / "fixtures/checkpoints-c63be65"
DRAWN: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    "class": ({"labels": [0, 2, 1]}, [[6, 0, 8, 0], [1, 8, 6, 1], [4, 4, 7, 6]]),
    "text": ({"text": ["a red disk", "", "two rings"]}, [[7, 2, 8, 3], [1, 7, 4, 1], [4, 4, 7, 4]]),
}


@pytest.mark.parametrize("condition", DRAWN)
def test_an_earlier_prior_is_the_same_under_its_recorded_digest(condition: str) -> None:
    folder = EARLIER / f"prior_{condition}"
    values = yaml.safe_load((folder / "config.yaml").read_text())["config"]
    assert {"dropout", "condition_dropout"} < set(values) and "kind" not in values
    prior = flextok.load_prior(str(folder))
    assert prior.digest == describe_checkpoint(str(folder))["digest"] == read_provenance(str(folder))["digest"]
    assert isinstance(prior.config.model, AutoregressiveConfig)
    assert (prior.config.num_tokens, prior.config.vocab_size, prior.config.tokenizer) == (4, 11, "ab" * 32)
    what, ids = DRAWN[condition]
    assert prior.generate(**what, seed=3, guidance=2.0).tolist() == ids
