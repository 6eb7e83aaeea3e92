"""Flips and random crops: what is cut, what decides it, and that latents kept in memory are those of the pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_alignment import HERE, RECIPE, SIZE, corpus_url, latents_url  # noqa: F401 - fixtures

from flextok.config import parse_config
from flextok.data.corpus.crops import Window, crop_view
from flextok.data.corpus.reader import Corpus
from flextok.errors import UsageError
from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.rng import SampleRng
from flextok.train import tokenizer as tokenizer_training
from flextok.train.augmentation import augmented, windows
from flextok.train.autoencoder import train_autoencoder
from flextok.train.config import AugmentationConfig, AutoencoderRecipe, AutoencoderTrainConfig, DecoderOnlyConfig
from flextok.train.data import CachedLatents, CorpusImages
from flextok.train.parallel import DistContext
from flextok.train.tokenizer import TokenizerJob, TokenizerObjective

BOTH = AugmentationConfig(horizontal_flip=0.5, crop=(0.5, 1.0))
FLIPS = AugmentationConfig(horizontal_flip=0.5)


def objective(augmentation: AugmentationConfig, latents: str, corpus: str, **train: object) -> TokenizerObjective:
    config = RECIPE.train.model_copy(update={"augmentation": augmentation, **train})
    job = TokenizerJob(RECIPE.model_copy(update={"train": config}), latents, corpus, SIZE, "", None)
    built, _ = job.build(DistContext())
    return built.train()


def test_a_window_is_cut_out_of_the_resized_picture() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(rgb)
    # half of the short side at 24 pixels: the picture keeps its size, and the crop has 24 places down and 40 across
    np.testing.assert_array_equal(crop_view(picture, 24, Window(0.5, 0.0, 0.0)), rgb[:24, :24])
    np.testing.assert_array_equal(crop_view(picture, 24, Window(0.5, 0.999, 0.999)), rgb[24:, 40:])
    np.testing.assert_array_equal(crop_view(picture, 24, Window(0.5, 0.5, 0.1)), rgb[2:26, 20:44])
    whole = crop_view(picture, 48, Window(1.0, 0.5, 0.7))
    np.testing.assert_array_equal(whole, rgb[:, 8:56])
    np.testing.assert_array_equal(whole, crop_view(picture, 48, "center"))


def test_windows_lie_between_the_sides_that_were_asked_for() -> None:
    found = windows(BOTH, SampleRng(0, range(200)))
    assert found is not None and windows(FLIPS, SampleRng(0, range(2))) is None
    sides, lefts, tops = np.array(found).T
    assert 0.5 <= sides.min() < 0.52 and 0.98 < sides.max() <= 1
    assert all(0 <= each.min() < 0.05 and 0.95 < each.max() < 1 for each in (lefts, tops))
    assert np.abs(np.corrcoef([sides, lefts, tops]) - np.eye(3)).max() < 0.2


def test_draws_depend_on_the_visit_and_not_on_who_reads_it(corpus_url: str) -> None:  # noqa: F811
    source = CorpusImages(Corpus.open(corpus_url), SIZE, cache_bytes=0)
    indices = np.array([3, 7, 3, 0, 5, 3])
    whole = augmented(source, indices, SampleRng(0, range(10, 16)), BOTH)["images"]
    parts = [augmented(source, indices[cut], SampleRng(0, range(10, 16)[cut]), BOTH)["images"]
             for cut in (slice(0, 2), slice(2, 6))]  # fmt: skip
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole[0], whole[2]) and not torch.equal(whole[2], whole[5])  # one sample at three visits
    assert not torch.equal(whole, augmented(source, indices, SampleRng(1, range(10, 16)), BOTH)["images"])
    plain = source.fetch(indices)["images"]
    assert torch.equal(augmented(source, indices, SampleRng(0, range(6)), AugmentationConfig())["images"], plain)
    turned = augmented(source, indices, SampleRng(0, range(6)), AugmentationConfig(horizontal_flip=1.0))["images"]
    assert torch.equal(turned, plain.flip(3))


def test_latents_and_features_kept_in_memory_are_those_of_the_flipped_pictures(
    corpus_url: str,  # noqa: F811
    latents_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the loss: once encoded in advance, once in the step."""
    kept = objective(FLIPS, latents_url, corpus_url)
    monkeypatch.setattr(tokenizer_training, "CACHE_BYTES", 0)
    read = objective(FLIPS, latents_url, corpus_url)
    assert isinstance(kept.source, CachedLatents) and isinstance(read.source, CorpusImages)
    assert len(kept.source) == len(read.source) == 12
    indices, rng = np.array([3, 7, 3, 0, 5, 3, 11, 2]), SampleRng(0, range(8))
    flips = (rng.uniform("flip") < 0.5).tolist()
    assert 0 < sum(flips) < 8
    batch = kept.fetch(indices, rng)
    assert batch["rows"].tolist() == [index + 12 * flip for index, flip in zip(indices, flips, strict=True)]
    torch.testing.assert_close(kept(batch, rng), read(read.fetch(indices, rng), rng))


def test_tokens_kept_for_the_end_are_those_of_the_flipped_pictures(corpus_url: str, latents_url: str) -> None:  # noqa: F811
    end = DecoderOnlyConfig(from_step=1)
    found = objective(FLIPS, latents_url, corpus_url, decoder_only=end)
    indices, rng = np.array([3, 7, 3, 0, 5, 3, 11, 2]), SampleRng(0, range(4, 12))  # of the second step and later
    batch = found.fetch(indices, rng)
    assert {row >= 12 for row in batch["rows"].tolist()} == {True, False}
    before = found(batch, rng)
    found.freeze(DistContext())
    torch.testing.assert_close(found(batch, rng), before)


def test_crops_are_read_at_each_visit_and_encoded_in_the_step(corpus_url: str, latents_url: str) -> None:  # noqa: F811
    found = objective(BOTH, latents_url, corpus_url)
    assert isinstance(found.source, CorpusImages) and not found.source.in_memory
    indices = np.array([3, 3])
    first, second = (found.fetch(indices, SampleRng(0, places))["images"] for places in (range(2), range(2, 4)))
    assert not torch.equal(first, second)
    assert found({"images": first}, SampleRng(0, range(2))).isfinite().all()


def test_an_autoencoder_is_trained_with_both(corpus_url: str, tmp_path: Path) -> None:  # noqa: F811
    def trained(augmentation: AugmentationConfig, name: str) -> str:
        train = AutoencoderTrainConfig(steps=2, batch_size=4, precision="float32", augmentation=augmentation)
        model = ConvAutoencoderConfig(channels=4, blocks=0, latent_channels=2, factor=4)
        return train_autoencoder(
            AutoencoderRecipe(model=model, train=train), corpus_url, SIZE, str(tmp_path / name), HERE
        ).digest

    assert len({trained(each, "once") for each in (AugmentationConfig(), FLIPS, BOTH)}) == 3
    assert trained(BOTH, "once") == trained(BOTH, "again")


@pytest.mark.parametrize("crop", [[0.0, 1.0], [0.9, 0.5], [0.5, 1.5]])
def test_a_crop_that_is_none_is_one_line(crop: list[float]) -> None:
    with pytest.raises(UsageError, match=r"expected crop as \[low, high\] with 0 < low <= high <= 1, found"):
        parse_config(AugmentationConfig, {"crop": crop}, "test")
    assert "augmentation" not in AutoencoderTrainConfig(steps=1).content()
