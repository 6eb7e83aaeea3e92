"""The z-loss of a prior: its formula, and that it stays out of the cross-entropy."""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from test_jobs import HERE, PRIOR, make_tokens
from test_prior_kinds import RECIPE as BIGRAM

from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.model.load import load_prior
from flextok.model.priors.base import Prior
from flextok.model.rng import SampleRng
from flextok.train.config import PriorTrainConfig
from flextok.train.prior import prior_config, train_prior

WEIGHT = 0.5


def test_it_is_the_squared_logarithm_of_what_the_softmax_divides_by(tmp_path: Path) -> None:
    store = TokenStore.open(make_tokens(tmp_path / "tokens", [row % 5 for row in range(6)]))
    prior = Prior.create(prior_config(PRIOR, store), seed=0)
    prior.add_z_loss()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        prior.get_parameter("head.weight").normal_(generator=generator)
    seen: list[torch.Tensor] = []
    prior.get_submodule("head").register_forward_hook(lambda *found: seen.append(found[2]))
    ids, labels = torch.tensor([[4, 1, 0], [2, 2, 6]]), torch.tensor([4, 2])
    losses = prior.train().training_step(ids, labels, None, None, SampleRng(0, range(2)))
    logits = seen[0].detach().double().numpy().astype("float64")
    normalisers = [[math.log(sum(math.exp(x) for x in row)) for row in image] for image in logits]
    assert losses["z"].tolist() == pytest.approx([sum(z * z for z in image) / 3 for image in normalisers], rel=1e-5)
    assert torch.equal(losses["nll"], prior.loss(ids, labels).mean(dim=1))
    assert prior.eval().training_step(ids, labels, None, None, SampleRng(0, range(2))).keys() == {"nll"}


def test_a_training_records_it_beside_the_cross_entropy(tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path / "tokens", [row % 5 for row in range(24)])
    train = PRIOR.train.model_copy(update={"z_loss": WEIGHT, "dropout": 0.0, "validation_samples": 24})
    made = train_prior(PRIOR.model_copy(update={"train": train}), tokens, tokens, str(tmp_path / "prior"), HERE)
    rows = pq.read_table(f"{made.url}/history.parquet").to_pylist()
    z = [row["value"] for row in rows if row["name"] == "train/loss/z"]
    assert z[-1] < 0.8 * z[0] < 0.8 * math.log(7) ** 2
    total = made.metrics["train/loss/nll"] + WEIGHT * made.metrics["train/loss/z"]
    assert made.metrics["train/loss"] == pytest.approx(total, rel=1e-5)
    store, prior = TokenStore.open(tokens), load_prior(made.url)
    with torch.no_grad():
        loss = prior.loss(torch.from_numpy(store.ids().astype("int64")), torch.from_numpy(store.labels())).mean().item()
    assert made.metrics["val/loss"] == pytest.approx(loss, rel=1e-5)


def test_without_it_nothing_is_recorded_and_the_content_is_as_before(tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path / "tokens", [row % 5 for row in range(8)])
    train = PRIOR.train.model_copy(update={"steps": 2, "validate_every": None})
    made = train_prior(PRIOR.model_copy(update={"train": train}), tokens, None, str(tmp_path / "prior"), HERE)
    assert not any(name.startswith("train/loss/") for name in made.metrics)
    assert "z_loss" not in PriorTrainConfig(steps=1).content()


def test_a_kind_that_has_none_says_so(tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path / "tokens", [row % 5 for row in range(8)])
    recipe = BIGRAM.model_copy(update={"train": BIGRAM.train.model_copy(update={"z_loss": WEIGHT})})
    with pytest.raises(UsageError, match=r"expected prior.train.z_loss 0 for a prior of kind bigram"):
        train_prior(recipe, tokens, None, str(tmp_path / "prior"), HERE)
