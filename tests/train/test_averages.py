"""Averages of several decays at once: each is what a training with that decay alone comes to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_jobs import HERE, PRIOR, make_tokens
from test_loop import CONFIG, Stopped, stop_at
from test_parallel import tokenizer_objectives
from train_toy import make_objective

from flextok.model.load import load_prior
from flextok.provenance import artifacts_in
from flextok.train.config import TrainConfig
from flextok.train.loop import train
from flextok.train.parallel import DistContext
from flextok.train.prior import train_prior

DECAYS = (0.1, 0.3)  # below those of the warm-up, (1 + step) / (10 + step)


def with_decays(config: TrainConfig, *decays: float) -> TrainConfig:
    return config.model_copy(update={"ema_decay": decays[0], "further_ema_decays": decays[1:]})


def test_each_average_is_that_of_a_run_of_its_own_also_after_a_stop(tmp_path: Path) -> None:
    alone: dict[float, dict[str, torch.Tensor]] = {}
    for decay in (0.9, *DECAYS):
        objective = make_objective()
        train(objective, with_decays(CONFIG, decay), DistContext(), str(tmp_path / str(decay)))
        assert objective.further_averages == {}
        alone[decay] = objective.model.state_dict()
    run, together = str(tmp_path / "together"), make_objective()
    with pytest.raises(Stopped):
        train(make_objective(), with_decays(CONFIG, 0.9, *DECAYS), DistContext(), run, on_progress=stop_at(13))
    train(together, with_decays(CONFIG, 0.9, *DECAYS), DistContext(), run)
    found = {0.9: together.model.state_dict(), **together.further_averages}
    for decay, weights in alone.items():
        assert all(torch.equal(found[decay][name], tensor) for name, tensor in weights.items())


def test_each_is_saved_as_a_checkpoint_beside_the_main_one(tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path / "tokens", [row % 5 for row in range(12)])

    def trained(name: str, *decays: float) -> Any:
        config = with_decays(PRIOR.train.model_copy(update={"steps": 6, "validate_every": None}), *decays)
        recipe = PRIOR.model_copy(update={"train": config})
        return train_prior(recipe, tokens, None, str(tmp_path / name), HERE)

    together = trained("together", 0.9, *DECAYS)
    assert together.digest == trained("main", 0.9).digest
    for decay in DECAYS:
        (url,) = artifacts_in(f"{together.url}/averages/{decay}")
        assert load_prior(url).digest == trained(str(decay), decay).digest != together.digest


def test_what_is_frozen_is_the_same_in_all(tmp_path: Path) -> None:
    """Else the decoder of another average would stand beside an encoder that it never saw."""
    objective, _ = tokenizer_objectives(decoder_only=True)
    config = with_decays(objective.config, 0.9, *DECAYS)  # pyright: ignore[reportAttributeAccessIssue]
    train(objective, config, DistContext(), str(tmp_path))
    main = objective.model.state_dict()
    for weights in objective.further_averages.values():
        same = {name for name, tensor in weights.items() if torch.equal(tensor, main[name])}
        assert {name for name in weights if name.startswith("encoder.")} <= same
        assert "decoder.head.weight" not in same
