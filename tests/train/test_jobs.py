"""Training autoencoder, tokenizer and prior on a small real corpus, each in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus
from flextok.data.scenes import ScenesConfig
from flextok.data.tokens import TokenMeta, token_schema, token_table, write_token_manifest, write_token_shard
from flextok.errors import IntegrityError, UsageError
from flextok.model.autoencoders.config import AutoencoderKLConfig, ConvAutoencoderConfig
from flextok.model.config import TokenizerModelConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.load import load_autoencoder, load_prior, load_tokenizer
from flextok.model.nn.config import TrunkConfig
from flextok.model.priors.config import AutoregressiveConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.provenance import lineage, read_provenance
from flextok.runtime.compute import ComputeConfig
from flextok.train.autoencoder import train_autoencoder
from flextok.train.config import (
    AutoencoderRecipe,
    AutoencoderTrainConfig,
    KeepBestConfig,
    OptimizerConfig,
    PriorRecipe,
    PriorTrainConfig,
    TokenizerRecipe,
    TokenizerTrainConfig,
)
from flextok.train.data import CachedLatents, CorpusImages, model_images
from flextok.train.parallel import DistContext
from flextok.train.prior import train_prior
from flextok.train.tokenizer import TokenizerJob, train_tokenizer

SIZE = 16
HERE = ComputeConfig(train_workers=0)
OPTIMIZER = OptimizerConfig(lr=3e-3, warmup_steps=5)
TRAIN: dict[str, Any] = {
    "steps": 40, "batch_size": 8, "optimizer": OPTIMIZER, "log_every": 10, "precision": "float32"
}  # fmt: skip
VALIDATED: dict[str, Any] = {**TRAIN, "validate_every": 20, "validation_samples": 11}
LATENTS = AutoencoderRecipe(
    model=ConvAutoencoderConfig(channels=16, blocks=1, latent_channels=4, factor=4),
    train=AutoencoderTrainConfig(**TRAIN),
)
TRUNK = TrunkConfig(width=32, depth=1, head_dim=16)
TOKENIZER = TokenizerRecipe(
    model=TokenizerModelConfig(
        registers=4,
        encoder=TRUNK,
        decoder=FlowDecoderConfig(trunk=TRUNK),
        quantizer=FSQConfig(levels=(5, 5)),
        patch_size=2,
    ),
    train=TokenizerTrainConfig(**VALIDATED),
)
PRIOR = PriorRecipe(
    model=AutoregressiveConfig(width=32, depth=1, head_dim=16), train=PriorTrainConfig(**VALIDATED, dropout=0.1)
)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("corpora")
    config = CorpusConfig(scenes=ScenesConfig(train_samples=48, val_samples=16, image_px=SIZE), shard_samples=20)
    return {split: shard_corpus(config, split, str(root / split), progress=False).url for split in ("train", "val")}


@pytest.fixture(scope="module")
def latents_url(corpora: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    parent = str(tmp_path_factory.mktemp("vae"))
    return train_autoencoder(LATENTS, corpora["train"], SIZE, parent, HERE).url


def history(url: str, name: str) -> dict[int, float]:
    rows = pq.read_table(f"{url}/history.parquet").to_pylist()
    return {row["step"]: row["value"] for row in rows if row["name"] == name}


def all_images(url: str) -> torch.Tensor:
    source = CorpusImages(Corpus.open(url), SIZE)
    return model_images(source.fetch(np.arange(len(source)))["images"])


def make_tokens(folder: Path, labels: list[int | None], tokenizer: str = "ab" * 32, shift: int = 0) -> str:
    """A token store in which the label, plus `shift`, decides every id but the last."""
    meta = TokenMeta(tokenizer=tokenizer, vocab_size=7, num_tokens=3)
    random = np.random.default_rng(0)
    ids = np.array([[((label or 0) + shift) % 7, ((label or 0) + shift) % 3, random.integers(7)] for label in labels])
    columns = {
        "key": [f"k{row}" for row in range(len(labels))],
        "label": labels,
        "text": [f"scene {label}" for label in labels],
        "width": [16] * len(labels),
        "height": [16] * len(labels),
        "sha256": [bytes(32)] * len(labels),
    }
    schema = token_schema(meta)
    record = write_token_shard(str(folder / "000000.parquet"), schema, [token_table(schema, ids, columns)])
    write_token_manifest(str(folder), "tokens", [record], meta, [], {})
    return str(folder)


def test_conv_latents_learn_and_have_unit_size(latents_url: str, corpora: dict[str, str]) -> None:
    losses = history(latents_url, "train/loss")
    assert losses[40] < 0.6 * losses[10]
    z = load_autoencoder(latents_url).encode(all_images(corpora["train"]))
    assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert torch.allclose(z.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-2)


def test_an_autoencoder_kl_learns_and_has_unit_size(corpora: dict[str, str], tmp_path: Path) -> None:
    model = AutoencoderKLConfig(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)
    recipe = AutoencoderRecipe(model=model, train=AutoencoderTrainConfig(**{**TRAIN, "steps": 20}))
    made = train_autoencoder(recipe, corpora["train"], SIZE, str(tmp_path), HERE)
    losses = history(made.url, "train/loss")
    assert losses[20] < losses[10]
    with torch.no_grad():
        assert load_autoencoder(made.url).encode(all_images(corpora["train"])).std().item() == pytest.approx(
            1, abs=1e-2
        )


def test_diffusers_weights_are_taken_over(corpora: dict[str, str], tmp_path: Path) -> None:
    model = AutoencoderKLConfig(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)
    original = model.build()
    original.vae.save_pretrained(tmp_path / "diffusers")
    recipe = AutoencoderRecipe(model=model, pretrained=str(tmp_path / "diffusers"))
    made = train_autoencoder(recipe, corpora["train"], SIZE, str(tmp_path), HERE)
    images = all_images(corpora["train"])[:2]
    with torch.no_grad():
        assert torch.allclose(load_autoencoder(made.url).encode(images), original.encode(images), atol=1e-6)
    other = recipe.model_copy(update={"model": model.model_copy(update={"latent_channels": 8})})
    with pytest.raises(UsageError, match="expected diffusers weights of"):
        train_autoencoder(other, corpora["train"], SIZE, str(tmp_path), HERE)


def test_a_tokenizer_learns_and_says_what_it_came_from(
    latents_url: str, corpora: dict[str, str], tmp_path: Path
) -> None:
    made = train_tokenizer(TOKENIZER, latents_url, corpora["train"], SIZE, str(tmp_path), HERE, val_url=corpora["val"])
    losses, held_out = history(made.url, "train/loss"), history(made.url, "val/loss")
    assert losses[40] < losses[10] and held_out[40] < held_out[20]
    assert 0 < history(made.url, "train/codebook_usage")[40] <= 1
    assert made.metrics["val/loss"] == held_out[40]

    tokenizer = load_tokenizer(made.url)
    images = all_images(corpora["val"])[:3]
    assert tokenizer.tokenize(images).shape == (3, 4)
    assert torch.equal(tokenizer.latents.encode(images), load_autoencoder(latents_url).encode(images))
    tree = lineage(made.url)
    assert [(node["kind"], node["found"]) for node in tree["inputs"]] == [("vae", True), ("corpus", True)]


def test_held_out_pictures_are_an_input_only_where_they_decide(latents_url: str, corpora: dict[str, str]) -> None:
    def job(recipe: TokenizerRecipe, val_url: str | None) -> TokenizerJob:
        return TokenizerJob(recipe, latents_url, corpora["train"], SIZE, "parent", val_url)

    assert job(TOKENIZER, corpora["val"]).fingerprint() == job(TOKENIZER, None).fingerprint()
    judged = TOKENIZER.model_copy(update={"train": TokenizerTrainConfig(**VALIDATED, keep_best=KeepBestConfig())})
    assert job(judged, corpora["val"]).inputs() == [latents_url, corpora["train"], corpora["val"]]
    assert job(judged, corpora["val"]).fingerprint() != job(judged, corpora["train"]).fingerprint()


def test_training_again_gives_the_same_digest(latents_url: str, corpora: dict[str, str], tmp_path: Path) -> None:
    short = TOKENIZER.model_copy(update={"train": TokenizerTrainConfig(**{**TRAIN, "steps": 3})})
    digests = {
        train_tokenizer(short, latents_url, corpora["train"], SIZE, str(tmp_path / name), HERE).digest
        for name in ("first", "second")
    }
    assert len(digests) == 1


def test_cached_latents_are_those_of_the_autoencoder(latents_url: str, corpora: dict[str, str]) -> None:
    autoencoder = load_autoencoder(latents_url)
    crops = CorpusImages(Corpus.open(corpora["train"]), SIZE)
    with torch.no_grad():
        cached = CachedLatents(crops, autoencoder.encode, (4, 4, 4), DistContext())
        direct = autoencoder.encode(all_images(corpora["train"]))
    assert len(cached) == 48
    assert torch.allclose(cached.fetch(np.array([5, 40]))["latents"], direct[[5, 40]], atol=1e-6)


def test_crops_are_the_same_from_storage_and_from_memory(corpora: dict[str, str]) -> None:
    corpus = Corpus.open(corpora["train"])
    indices = np.array([3, 47, 3, 20])
    kept, read = CorpusImages(corpus, 12), CorpusImages(corpus, 12, cache_bytes=0)
    assert kept.in_memory and not read.in_memory
    first = kept.fetch(indices)["images"]
    assert first.shape == (4, 3, 12, 12) and first.dtype == torch.uint8
    assert torch.equal(first, read.fetch(indices)["images"]) and torch.equal(first, kept.fetch(indices)["images"])


@pytest.mark.parametrize("size", [18, 20])
def test_an_image_size_that_does_not_fit_is_one_line(
    size: int, latents_url: str, corpora: dict[str, str], tmp_path: Path
) -> None:
    # 18 is no multiple of the latents' factor 4; 20 is, but not of factor times patch size.
    with pytest.raises(UsageError, match=f"image_size {size} is not a multiple"):
        train_tokenizer(TOKENIZER, latents_url, corpora["train"], size, str(tmp_path), HERE)
    if size == 18:
        with pytest.raises(UsageError, match="multiples of the latents' factor 4, found 18"):
            train_autoencoder(LATENTS, corpora["train"], size, str(tmp_path), HERE)


def test_a_tokenizer_is_no_autoencoder(corpora: dict[str, str], latents_url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected"):
        train_tokenizer(TOKENIZER, corpora["train"], corpora["train"], SIZE, str(tmp_path), HERE)
    with pytest.raises(UsageError, match="expected"):
        train_tokenizer(TOKENIZER, latents_url, str(tmp_path / "nowhere"), SIZE, str(tmp_path), HERE)


def test_a_class_prior_learns_what_labels_tell(tmp_path: Path) -> None:
    train_url = make_tokens(tmp_path / "train", [row % 5 for row in range(60)])
    val_url = make_tokens(tmp_path / "val", [row % 5 for row in range(11)])
    longer = PRIOR.train.model_copy(update={"steps": 150, "ema_decay": 0.9})
    made = train_prior(PRIOR.model_copy(update={"train": longer}), train_url, val_url, str(tmp_path / "prior"), HERE)
    prior = load_prior(made.url)
    assert (prior.config.num_classes, prior.config.vocab_size, prior.config.num_tokens) == (5, 7, 3)
    assert prior.config.tokenizer == "ab" * 32
    assert made.metrics["val/loss"] < np.log(7)
    ids = torch.tensor([[4, 1, 0]])
    with torch.no_grad():
        right, wrong = (prior.loss(ids, torch.tensor([label]))[0, 0].item() for label in (4, 2))
    assert right < 0.3 < wrong


def test_a_text_prior_learns_from_captions(tmp_path: Path) -> None:
    url = make_tokens(tmp_path / "train", [row % 5 for row in range(60)])
    model = PRIOR.model.model_copy(update={"condition": "text"})
    train = PRIOR.train.model_copy(update={"steps": 150, "ema_decay": 0.9, "validate_every": None})
    recipe = PriorRecipe(model=model, train=train)
    made = train_prior(recipe, url, None, str(tmp_path / "prior"), HERE)
    losses = history(made.url, "train/loss")
    assert losses[150] < 0.7 * losses[10]
    assert load_prior(made.url).generate(text=["scene 4", "scene 1"]).shape == (2, 3)


def test_a_prior_learns_most_from_the_store_that_weighs_most(tmp_path: Path) -> None:
    """Two stores of equal size contradict each other; what is learned is the mixture that the weights say."""
    one = make_tokens(tmp_path / "one", [0] * 20)
    other = make_tokens(tmp_path / "other", [0] * 20, shift=3)
    train = PRIOR.train.model_copy(update={"steps": 150, "ema_decay": 0.9, "validate_every": None})
    recipe = PRIOR.model_copy(update={"train": train})
    made = train_prior(recipe, {one: 1.0, other: 4.0}, None, str(tmp_path / "prior"), HERE)
    with torch.no_grad():
        losses = load_prior(made.url).loss(torch.tensor([[0, 0, 0], [3, 0, 0]]), torch.tensor([0, 0]))
    rare, common = (-losses[:, 0]).exp().tolist()
    assert rare == pytest.approx(0.2, abs=0.05) and common == pytest.approx(0.8, abs=0.05)
    provenance = read_provenance(made.url)
    assert [Path(item["uri"]).name for item in provenance["inputs"]] == ["one", "other"]
    assert provenance["recipe"]["weights"] == [1.0, 4.0]


def test_what_a_prior_lacks_is_one_line(tmp_path: Path) -> None:
    unlabelled = make_tokens(tmp_path / "unlabelled", [1, None, 2])
    with pytest.raises(UsageError, match=r"expected a label on every row .* found 1 of 3"):
        train_prior(PRIOR, unlabelled, None, str(tmp_path), HERE)
    labelled = make_tokens(tmp_path / "labelled", [1, 0])
    other = make_tokens(tmp_path / "other", [1, 0], tokenizer="cd" * 32)
    with pytest.raises(UsageError, match="tokens of one tokenizer, found abab"):
        train_prior(PRIOR, labelled, other, str(tmp_path), HERE)
    with pytest.raises(IntegrityError, match=r"token shards of one tokenizer, tokenizer abab.*, found cdcd"):
        train_prior(PRIOR, {labelled: 1, other: 1}, None, str(tmp_path), HERE)
