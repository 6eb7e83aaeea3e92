"""A kind of prior registered from a test, through training, generation, stored samples and statistics."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_prior import BigramPrior

from flextok.config import parse_config
from flextok.data.tokens import (
    TokenMeta,
    TokenStore,
    token_schema,
    token_table,
    write_token_manifest,
    write_token_shard,
)
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig, SamplesConfig
from flextok.evaluate.prior_statistics import prior_statistics
from flextok.evaluate.sampling import sample_images
from flextok.generate import generate_images
from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.checkpoint import save_checkpoint
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.load import load_prior
from flextok.model.nn.config import TrunkConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.cluster import stop_ray
from flextok.runtime.compute import ComputeConfig
from flextok.train.config import PriorRecipe
from flextok.train.prior import train_prior

CLASSES, IDS = 3, 8
HERE = ComputeConfig(train_workers=0)
RECIPE = PriorRecipe.model_validate(
    {
        "model": {"kind": "bigram"},
        "train": {"steps": 60, "batch_size": 10, "log_every": 20, "precision": "float32", "checkpoint_every": 40},
    }
)


@pytest.fixture(scope="module")
def tokenizer_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    trunk = TrunkConfig(width=16, depth=1, head_dim=8)
    config = TokenizerConfig(
        latents=ConvAutoencoderConfig(channels=8, blocks=0, latent_channels=2, factor=4),
        image_size=16,
        registers=4,
        encoder=trunk,
        quantizer=FSQConfig(levels=(4, 2)),
        decoder=FlowDecoderConfig(trunk=trunk),
    )
    parent = str(tmp_path_factory.mktemp("tokenizer"))
    return save_checkpoint(parent, "tokenizer", Tokenizer.create(config, 0).state_dict(), config, [], {}).url


@pytest.fixture(scope="module")
def tokens_url(tokenizer_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows that count up from a start by the step of their class: each id says the next."""
    folder = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(0)
    labels = [row % CLASSES for row in range(90)]
    starts = rng.integers(IDS, size=len(labels))
    ids = np.array([(start + np.arange(4) * (label + 1)) % IDS for start, label in zip(starts, labels, strict=True)])
    meta = TokenMeta(tokenizer=Path(tokenizer_url).name, vocab_size=IDS, num_tokens=4)
    columns = {
        "key": [f"k{row}" for row in range(len(labels))],
        "label": labels,
        "text": [None] * len(labels),
        "width": [16] * len(labels),
        "height": [16] * len(labels),
        "sha256": [bytes(32)] * len(labels),
    }
    schema = token_schema(meta)
    record = write_token_shard(str(folder / "000000.parquet"), schema, [token_table(schema, ids, columns)])
    write_token_manifest(str(folder), "tokens", [record], meta, [], {})
    return str(folder)


@pytest.fixture(scope="module")
def prior_url(tokens_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return train_prior(RECIPE, tokens_url, tokens_url, str(tmp_path_factory.mktemp("prior")), HERE).url


def steps_between(ids: np.ndarray) -> np.ndarray:
    return (ids[:, 1:] - ids[:, :-1]) % IDS


def test_it_learns_generates_and_keeps_its_buffer(prior_url: str) -> None:
    prior = load_prior(prior_url)
    assert isinstance(prior, BigramPrior) and prior.config.model.kind == "bigram"
    ids = prior.generate(labels=[0, 1, 2] * 8, seed=1, top_p=0.9).numpy()
    assert (steps_between(ids) == np.array([1, 2, 3] * 8)[:, None]).all()
    whole = prior.generate(labels=[1, 2], seed=1)
    assert torch.equal(prior.generate(labels=[1, 2], seed=1, keep=2), whole[:, :2])
    assert torch.equal(prior.generate(labels=[1, 2], seed=1, prefix=whole[:, :2]), whole)
    assert torch.equal(prior.prepare(rows=2).generate(labels=[1, 2], seed=1), whole)
    assert len(np.unique(ids[:, 0])) > 1


def test_the_exportable_kind_learns_on_the_same_tokens(tokens_url: str, tmp_path: Path) -> None:
    recipe = PriorRecipe.model_validate(
        {
            "model": {"kind": "llama", "width": 32, "depth": 2, "head_dim": 16},
            "train": {
                "steps": 200, "batch_size": 30, "precision": "float32", "condition_dropout": 0.0,
                "optimizer": {"lr": 1e-2, "warmup_steps": 10},
            },
        }
    )  # fmt: skip
    prior = load_prior(train_prior(recipe, tokens_url, tokens_url, str(tmp_path), HERE).url)
    assert prior.config.model.kind == "llama"
    ids = prior.generate(labels=[0, 1, 2] * 8, seed=1).numpy()
    assert (steps_between(ids) == np.array([1, 2, 3] * 8)[:, None]).mean() > 0.95


def test_its_samples_and_statistics_are_made_as_of_any_prior(
    prior_url: str, tokenizer_url: str, tokens_url: str, tmp_path: Path
) -> None:
    config = EvaluationConfig(steps=1, guidance=1.0, keep=(4,), samples=SamplesConfig(num=12, top_p=0.9))
    made = sample_images(prior_url, tokenizer_url, str(tmp_path / "samples"), config)
    store = TokenStore.open(made.url)
    assert (steps_between(store.ids().astype(int)) == (store.labels() + 1)[:, None]).all()
    found = prior_statistics(prior_url, tokens_url, tokens_url)
    # Only the first id is open, 3 bits of 4 ids; the histogram of each position tells nothing.
    assert 0.7 < found.value("prior_loss_bits") < 1.1 and found.value("token_entropy_bits") > 2.5
    assert found.value("prior_loss_bits_shuffled") > found.value("prior_loss_bits") + 1
    assert len(generate_images(prior_url, tokenizer_url, str(tmp_path / "images"), label=1, num=2)) == 2


def test_an_unknown_kind_names_the_nearest() -> None:
    values = {"model": {"kind": "bigran"}, "train": {"steps": 1}}
    with pytest.raises(UsageError, match=r"autoregressive, bigram, llama, found 'bigran'; the nearest is 'bigram'"):
        parse_config(PriorRecipe, values, "recipe")
    with pytest.raises(UsageError, match=r"unknown key 'model\.smoothin'; the nearest known key is 'model\.smoothing'"):
        parse_config(PriorRecipe, {**values, "model": {"kind": "bigram", "smoothin": 1}}, "recipe")
    settings = {"width": 32, "depth": 1, "head_dim": 16}
    assert parse_config(PriorRecipe, {**values, "model": settings}, "recipe").model.kind == "autoregressive"


@pytest.fixture
def ray_of_its_own() -> Iterator[None]:
    """One which nobody told of the toy's module."""
    stop_ray()
    yield
    stop_ray()


@pytest.mark.slow
def test_workers_of_ray_know_it_and_agree(
    ray_of_its_own: None, prior_url: str, tokens_url: str, tmp_path: Path
) -> None:
    compute = ComputeConfig(train_workers=2, num_cpus=2)
    made = train_prior(RECIPE, tokens_url, tokens_url, str(tmp_path), compute)
    found, expected = load_prior(made.url).state_dict(), load_prior(prior_url).state_dict()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
