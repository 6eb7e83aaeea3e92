"""A further quantizer, decoder and autoencoder, registered from here: trained, saved, loaded, used and measured."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from toy_family import MEMBERS, Bottleneck, EmaCodebook, Regression

from flextok.config import parse_config
from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus
from flextok.data.scenes import ScenesConfig
from flextok.data.tokens import TokenStore, verify_tokens
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.model.checkpoint import read_checkpoint
from flextok.model.decoders.config import SamplerConfig
from flextok.model.load import load_autoencoder, load_tokenizer, tokenizer_spec
from flextok.runtime.cluster import stop_ray
from flextok.runtime.compute import ComputeConfig
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.files import decode_tokens
from flextok.tokenize.job import tokenize_corpus
from flextok.train.autoencoder import train_autoencoder
from flextok.train.config import AutoencoderRecipe, TokenizerRecipe
from flextok.train.data import CorpusImages, model_images
from flextok.train.tokenizer import train_tokenizer

SIZE = 16
HERE = ComputeConfig(train_workers=0)
TRAIN = {
    "steps": 30, "batch_size": 8, "log_every": 10, "precision": "bfloat16", "ema_decay": 0.9,
    "optimizer": {"lr": 1e-2, "warmup_steps": 3},
}  # fmt: skip
TRUNK = {"width": 32, "depth": 1, "head_dim": 16}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    for register, config in MEMBERS:
        register.register(config)
    yield
    for register, config in MEMBERS:
        register.remove(config.model_fields["kind"].default)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("corpora")
    config = CorpusConfig(scenes=ScenesConfig(train_samples=48, val_samples=16, image_px=SIZE), shard_samples=20)
    return {split: shard_corpus(config, split, str(root / split), progress=False).url for split in ("train", "val")}


@pytest.fixture(scope="module")
def autoencoder_url(corpora: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    recipe = parse_config(
        AutoencoderRecipe, {"model": {"kind": "toy_linear"}, "train": {**TRAIN, "autoencoder": {"blur": 0.1}}}, "test"
    )
    return train_autoencoder(recipe, corpora["train"], SIZE, str(tmp_path_factory.mktemp("vae")), HERE).url


def tokenizer_recipe(quantizer: dict[str, Any], decoder: dict[str, Any], /, **train: Any) -> TokenizerRecipe:
    model = {"registers": 4, "patch_size": 2, "encoder": TRUNK, "quantizer": quantizer, "decoder": decoder}
    return parse_config(TokenizerRecipe, {"model": model, "train": {**TRAIN, **train}}, "test")


def history(url: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in pq.read_table(f"{url}/history.parquet").to_pylist():
        found.setdefault(row["name"], {})[row["step"]] = row["value"]
    return found


@pytest.fixture(scope="module")
def images(corpora: dict[str, str]) -> torch.Tensor:
    source = CorpusImages(Corpus.open(corpora["val"]), SIZE)
    return model_images(source.fetch(np.arange(5))["images"])


def test_an_autoencoder_trains_by_its_own_losses_and_is_measured(autoencoder_url: str, corpora: dict[str, str]) -> None:
    losses = history(autoencoder_url)
    assert losses["train/loss/mse"][30] < losses["train/loss/mse"][10]
    total = losses["train/loss/mse"][30] + losses["train/loss/size"][30]
    assert losses["train/loss"][30] == pytest.approx(total, rel=1e-5)
    autoencoder = load_autoencoder(autoencoder_url)
    assert "blur" not in read_checkpoint(autoencoder_url).config
    source = CorpusImages(Corpus.open(corpora["train"]), SIZE)
    z = autoencoder.encode(model_images(source.fetch(np.arange(48))["images"]))
    assert z.shape == (48, 4, 4, 4) and z.std().item() == pytest.approx(1, abs=1e-3)


def test_a_codebook_of_averages_and_a_decoder_without_noise(
    autoencoder_url: str, corpora: dict[str, str], images: torch.Tensor, tmp_path: Path
) -> None:
    recipe = tokenizer_recipe(
        {"kind": "toy_ema"}, {"kind": "toy_regression"}, loss_weights={"commitment": 0.25}, quantizer={"decay": 0.8}
    )
    assert (recipe.train.quantizer.kind, recipe.train.decoder.kind) == ("toy_ema", "toy_regression")
    made = train_tokenizer(recipe, autoencoder_url, corpora["train"], SIZE, str(tmp_path / "t"), HERE)
    losses = history(made.url)
    assert losses["train/loss/mse"][30] < losses["train/loss/mse"][10]
    total = losses["train/loss/mse"][30] + 0.25 * losses["train/loss/commitment"][30]
    assert losses["train/loss"][30] == pytest.approx(total, rel=1e-5)

    config = read_checkpoint(made.url).config
    assert "decay" not in config["quantizer"] and "loss_weights" not in config
    tokenizer = load_tokenizer(made.url)
    assert isinstance(tokenizer.quantizer, EmaCodebook) and isinstance(tokenizer.decoder, Regression)
    assert not torch.equal(tokenizer.quantizer.counts, torch.ones(8))  # buffers that the training moved
    frozen, alone = tokenizer.latents.state_dict(), load_autoencoder(autoencoder_url).state_dict()
    assert all(torch.equal(frozen[name], tensor) for name, tensor in alone.items())

    ids = tokenizer.tokenize(images)
    assert ids.dtype == torch.int64 and ids.shape == (5, 4) and ids.min() >= 0 and ids.max() < tokenizer.vocab_size == 8
    pictures = tokenizer.detokenize(ids, keep=2, steps=3, guidance=4.0)
    assert torch.equal(pictures, tokenizer.detokenize(ids, keep=2, seed=7))  # nothing is drawn
    assert pictures.shape == images.shape
    assert load_tokenizer(made.url, dtype=torch.bfloat16).tokenize(images).shape == (5, 4)

    evaluation = EvaluationConfig(steps=2, extractor="random_conv", batch_size=16, grid_images=2, keep=(1, 4))
    result = evaluate_reconstruction(made.url, corpora["val"], str(tmp_path / "evaluation"), evaluation)
    found = {(metric["name"], metric["k"]): metric["value"] for metric in result.metrics}
    assert 0 < found["mae", 4] < 1
    assert tokenizer.decoder.record(SamplerConfig()) == {"solver": "none: one pass"}


def test_tokens_that_are_numbers_go_there_and_back(
    autoencoder_url: str, corpora: dict[str, str], images: torch.Tensor, tmp_path: Path
) -> None:
    recipe = tokenizer_recipe({"kind": "toy_bottleneck"}, {"trunk": TRUNK}, loss_weights={"size": 1e-3})
    made = train_tokenizer(recipe, autoencoder_url, corpora["train"], SIZE, str(tmp_path), HERE)
    losses = history(made.url)
    assert "train/codebook_usage" not in losses and losses["train/loss/size"][30] > 0
    spec = tokenizer_spec(made.url)
    assert (spec.vocab_size, spec.codebooks) == (0, 3)

    tokenizer = load_tokenizer(made.url)
    assert isinstance(tokenizer.quantizer, Bottleneck) and tokenizer.is_continuous
    values = tokenizer.tokenize(images)
    assert values.dtype == torch.float32 and values.shape == (5, 4, 3)
    direct = tokenizer.quantizer(tokenizer.encoder(tokenizer.encode_images(images))).codes
    torch.testing.assert_close(values, direct)
    one, prefix = tokenizer.detokenize(values[:2], keep=2, steps=2), tokenizer.detokenize(values[:2, :2], steps=2)
    assert torch.equal(one, prefix) and one.shape == (2, 3, SIZE, SIZE)
    listed = tokenizer.detokenize([values[0, :1], values[1]], steps=2)
    assert listed.shape == (2, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"expected tokens as a float tensor \[B,K,C\]"):
        tokenizer.detokenize(torch.zeros(1, 4, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="finite tokens"):
        tokenizer.detokenize(torch.full((1, 4, 3), torch.nan))


def test_the_same_seed_gives_the_same_weights(autoencoder_url: str, corpora: dict[str, str], tmp_path: Path) -> None:
    recipe = tokenizer_recipe({"kind": "toy_ema"}, {"kind": "toy_regression"}, steps=3)
    digests = {
        train_tokenizer(recipe, autoencoder_url, corpora["train"], SIZE, str(tmp_path / name), HERE).digest
        for name in ("first", "second")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("decoder", "train", "said"),
    [
        ({"kind": "toy_regresion"}, {}, "nearest is 'toy_regression'"),
        ({"kind": "toy_regression"}, {"decoder": {"sigma": "uniform"}}, "unknown key 'train.decoder.sigma'"),
        (
            {"kind": "toy_regression"},
            {"decoder": {"kind": "flow"}},
            "train.decoder.kind 'toy_regression'.*found 'flow'",
        ),
        ({"trunk": TRUNK}, {"decoder": {"sgma": 1}}, "the nearest known key is 'train.decoder.sigma'"),
        ({"trunk": TRUNK}, {"quantizer": {"decay": 0.5}}, "unknown key 'train.quantizer.decay'"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(decoder: dict, train: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tokenizer_recipe({"levels": [4, 4]}, decoder, **train)


def test_a_weight_for_no_loss_names_the_nearest(autoencoder_url: str, corpora: dict[str, str], tmp_path: Path) -> None:
    recipe = tokenizer_recipe({"kind": "toy_ema"}, {"kind": "toy_regression"}, loss_weights={"comitment": 1.0})
    with pytest.raises(UsageError, match="losses commitment, mse, found 'comitment'; the nearest is 'commitment'"):
        train_tokenizer(recipe, autoencoder_url, corpora["train"], SIZE, str(tmp_path), HERE)


@pytest.mark.parametrize(
    ("quantizer", "decoder"),
    [({"kind": "toy_ema"}, {"kind": "toy_regression"}), ({"kind": "toy_bottleneck"}, {"trunk": TRUNK})],
)
def test_workers_of_bulk_tokenization_know_them(
    autoencoder_url: str, corpora: dict[str, str], tmp_path: Path, quantizer: dict, decoder: dict
) -> None:
    made = train_tokenizer(
        tokenizer_recipe(quantizer, decoder, steps=3),
        autoencoder_url,
        corpora["train"],
        SIZE,
        str(tmp_path / "t"),
        HERE,
    )
    stop_ray()
    compute = ComputeConfig(num_cpus=2, tokenize_actors=(1, 1))
    dest = str(tmp_path / "tokens")
    try:
        tokenize_corpus(corpora["val"], made.url, dest, TokenizeConfig(batch_size=8), compute, progress=False)
    finally:
        stop_ray()
    source = CorpusImages(Corpus.open(corpora["val"]), SIZE)
    crops = model_images(source.fetch(np.arange(16))["images"])
    store = TokenStore.open(dest)
    stored = store.values() if store.is_continuous else store.ids()
    np.testing.assert_allclose(stored, load_tokenizer(made.url).tokenize(crops).numpy(), atol=1e-5)
    assert store.is_continuous == (quantizer["kind"] == "toy_bottleneck")
    assert not verify_tokens(dest)
    sampler = SamplerConfig(steps=2)
    written = decode_tokens(store.shards[0].url, made.url, str(tmp_path / "pictures"), [1], sampler)
    assert len(written) == store.shards[0].rows
