"""Laws along the way: guidance and temperature that change from position to position."""

import numpy as np
import pytest
import torch
from test_prior import CONDITION, make_prior
from test_trunk import trained_logits

from flextok.digests import digest_of
from flextok.evaluate.config import SamplesConfig
from flextok.model.priors.base import Prior
from flextok.model.rng import uniform_for
from flextok.model.sampling.config import DrawConfig

SCHEDULES = {
    "constant": ({"kind": "constant"}, lambda r: np.ones_like(r)),
    "linear": ({"kind": "linear"}, lambda r: r),
    "cosine": ({"kind": "cosine"}, lambda r: 0.5 - 0.5 * np.cos(np.pi * r)),
    "power_cosine": ({"kind": "power_cosine", "power": 2.5}, lambda r: 0.5 - 0.5 * np.cos(np.pi * r**2.5)),
    "interval": ({"kind": "interval", "start": 0.2, "stop": 0.6}, lambda r: ((r >= 0.2) & (r <= 0.6)).astype(float)),
}


def rolled_out(prior: Prior, kind: str, guidance: np.ndarray, temperature: np.ndarray, seed: int) -> np.ndarray:
    """Ids [B,N] by the training forward over all ids at every step, in double precision, without a cache."""
    flat = torch.zeros(3, prior.config.sequence_length, dtype=torch.long)
    uniforms = uniform_for(seed, range(3), (flat.shape[1],)).double().numpy()
    for position in range(flat.shape[1]):
        given, dropped = (
            trained_logits(prior, kind, flat, drop)[:, position].double().numpy() for drop in (False, True)
        )
        mixed = dropped + guidance[position] * (given - dropped)
        for row in range(3):
            if temperature[position] == 0:
                flat[row, position] = int(mixed[row].argmax())
                continue
            weights = np.exp((mixed[row] - mixed[row].max()) / temperature[position])
            cumulative = weights.cumsum()
            flat[row, position] = int(np.argmax(cumulative > uniforms[row, position] * cumulative[-1]))
    return flat.numpy()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["class", "text"])
def test_a_schedule_runs_over_all_positions(kind: str, schedule: str) -> None:
    settings, share = SCHEDULES[schedule]
    prior = make_prior(kind)
    way = np.arange(6) / 5
    law = {"guidance": 4.0, "guidance_schedule": settings, "temperature": 1.5, "last_temperature": 0.5}
    expected = rolled_out(prior, kind, 1 + 3 * share(way), 1.5 - way, seed=9)
    assert prior.generate(**CONDITION[kind], seed=9, **law).tolist() == expected.tolist()
    # Fewer ids are a prefix of more: the way is not that of the ids which are drawn.
    assert prior.generate(**CONDITION[kind], seed=9, keep=3, **law).tolist() == expected[:, :3].tolist()


def test_a_temperature_that_falls_to_nothing_ends_in_the_likeliest() -> None:
    prior = make_prior("class")
    expected = rolled_out(prior, "class", np.ones(6), 1 - np.arange(6) / 5, seed=2)
    assert prior.generate(labels=[0, 2, 1], seed=2, last_temperature=0.0).tolist() == expected.tolist()


def test_codes_of_a_position_share_its_place_on_the_way() -> None:
    prior = make_prior("none")  # two codebooks, 6 positions, 12 ids
    greedy_after_half = prior.generate(num=3, temperature=1.0, last_temperature=0.0, seed=1)
    flat = greedy_after_half.flatten(1)
    likeliest = trained_logits(prior, "none", greedy_after_half, False).argmax(-1)
    assert torch.equal(flat[:, 10:], likeliest[:, 10:])  # both codes of the last position


def test_unused_laws_leave_the_digest_of_samples_alone() -> None:
    before = {"num": 256, "keep": None, "temperature": 1.0, "top_k": None, "top_p": None, "guidance": 1.0}
    assert digest_of(SamplesConfig().content()) == digest_of(before)
    used = SamplesConfig.model_validate({"min_p": 0.1, "guidance_schedule": {"kind": "linear"}})
    assert used.content() == {**before, "min_p": 0.1, "guidance_schedule": {"kind": "linear"}}
    assert DrawConfig.model_validate(used.part(DrawConfig).model_dump()) == used.part(DrawConfig)
