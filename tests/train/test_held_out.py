"""Held-out images while a tokenizer is trained: pictures for sinks, a distance in validations, entropy by position."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_alignment import HERE, RECIPE, SIZE, corpus_url  # noqa: F401 - fixture

from flextok import storage
from flextok.config import parse_config
from flextok.data.images import read_png, to_uint8
from flextok.errors import UsageError
from flextok.metrics.frechet import frechet_distance
from flextok.metrics.statistics import FeatureStatistics
from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.checkpoint import save_checkpoint
from flextok.model.efficientnet_lite0 import efficientnet_lite0, network_input
from flextok.model.load import load_tokenizer
from flextok.train.codebook import IdsByPosition
from flextok.train.config import PicturesConfig, TokenizerRecipe, TokenizerTrainConfig
from flextok.train.data import model_images
from flextok.train.held_out import HeldOutImages
from flextok.train.job import TrainResult
from flextok.train.parallel import CPU, DistContext
from flextok.train.tokenizer import train_tokenizer

PICTURES = {"every": 2, "images": 3, "keep": [1, 4], "steps": 2}
DISTANCE = {"images": 6, "keep": [1, 4], "input_px": 32, "steps": 2}


def recipe(**changes: Any) -> TokenizerRecipe:
    train = RECIPE.train.model_dump() | {"decoder": {"kind": "flow"}, "loss_weights": {}} | changes
    return parse_config(TokenizerRecipe, {"model": RECIPE.model.model_dump(), "train": train}, "test")


@pytest.fixture(scope="module")
def latents_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = ConvAutoencoderConfig(channels=8, blocks=1, latent_channels=4, factor=4)
    folder = str(tmp_path_factory.mktemp("vae"))
    return save_checkpoint(folder, "vae", config.build().state_dict(), config, [], {}).url


def trained(made: TokenizerRecipe, latents: str, corpus: str, folder: Path, val: str | None = None) -> TrainResult:
    return train_tokenizer(made, latents, corpus, SIZE, str(folder), HERE, val)


def history(made: TrainResult) -> dict[tuple[int, str], float]:
    table = pq.read_table(Path(storage.local_path(made.url)) / "history.parquet").to_pydict()
    return {
        (step, name): value for step, name, value in zip(*(table[c] for c in ("step", "name", "value")), strict=True)
    }


def test_pictures_are_of_the_averaged_weights_and_change_nothing(
    latents_url: str,
    corpus_url: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    plain = trained(recipe(), latents_url, corpus_url, tmp_path / "plain", corpus_url)
    drawn = recipe(pictures=PICTURES, sinks=["tensorboard"], validate_fd=DISTANCE)
    made = trained(drawn, latents_url, corpus_url, tmp_path / "drawn", corpus_url)
    assert made.digest == plain.digest and drawn.content() == recipe().content()
    (folder,) = (tmp_path / "drawn/.logs/pictures").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["step_000000002.png", "step_000000004.png"]
    found = read_png((folder / "step_000000004.png").read_bytes())
    assert found.shape == (3 * SIZE, 3 * SIZE, 3)

    tokenizer = load_tokenizer(made.url)  # whose weights are the averaged ones
    held_out = HeldOutImages(tokenizer, corpus_url, 3, PicturesConfig.model_validate(PICTURES))
    originals = held_out.originals_B3HW
    np.testing.assert_array_equal(found[:SIZE], np.concatenate(list(originals.permute(0, 2, 3, 1).numpy()), axis=1))
    expected = tokenizer.autoencode(
        model_images(originals), keep=4, steps=2, guidance=7.5, norm_guidance=True, seed=0, sample_ids=[0, 1, 2]
    )
    np.testing.assert_array_equal(found[2 * SIZE :], np.concatenate(list(to_uint8(expected)), axis=1))
    assert _tensorboard_pictures(tmp_path / "drawn/.logs/tensorboard") == [2, 4]
    rows = history(made)
    assert rows[4, "val/fd_efficientnet_lite0/4"] == pytest.approx(_distance(made, corpus_url), rel=1e-3)
    assert (4, "val/fd_efficientnet_lite0/1") in rows
    assert {name for _, name in rows if "entropy_by_position" in name} == {
        f"train/entropy_by_position/{position}" for position in (1, 2, 4)
    }


def _tensorboard_pictures(folder: Path) -> list[int]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (run,) = folder.iterdir()
    events = accumulator.EventAccumulator(str(run))
    events.Reload()
    return [event.step for event in events.Images("pictures")]


def _distance(made: TrainResult, corpus: str) -> float:
    """By the plain formula over the features of whole batches."""
    tokenizer, network = load_tokenizer(made.url), efficientnet_lite0(32).eval()
    held_out = HeldOutImages(tokenizer, corpus, 6, PicturesConfig.model_validate({**PICTURES, "images": 6}))
    statistics = []
    for images in (held_out.originals_B3HW, held_out.decoded(4, range(6))):
        with torch.no_grad():
            features = network.extract_features(network_input(images, 32)).mean(dim=(2, 3)).numpy()
        statistics.append(FeatureStatistics.empty(features.shape[1]))
        statistics[-1].add(features)
    return frechet_distance(*statistics)


def test_the_distance_may_choose_what_is_published(latents_url: str, corpus_url: str, tmp_path: Path) -> None:  # noqa: F811
    chosen = {"validate_every": 2, "validate_fd": DISTANCE, "keep_best": {"metric": "val/fd_efficientnet_lite0/4"}}
    assert recipe(**chosen).content()["train"]["validate_fd"]["images"] == 6
    made = trained(recipe(**chosen), latents_url, corpus_url, tmp_path, corpus_url)
    found = {step: value for (step, name), value in history(made).items() if name == "val/fd_efficientnet_lite0/4"}
    metadata = pq.read_schema(Path(storage.local_path(made.url)) / "history.parquet").metadata
    facts = [json.loads(value) for value in metadata.values() if b'"metric"' in value]
    assert facts[0]["step"] == min(found, key=lambda step: (found[step], step)) and len(found) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": {"every": 1, "keep": [5]}}, r"train.pictures.keep: expected at most the 4 registers, found 5"),
        ({"validate_fd": {}, "validate_every": None}, "validate_fd: expected it with validate_every, found none"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(**changes)


def test_pictures_without_held_out_images_are_one_line(latents_url: str, corpus_url: str, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UsageError, match=r"expected held-out images for tokenizer.train.pictures, found none"):
        trained(recipe(pictures=PICTURES), latents_url, corpus_url, tmp_path)


def test_numbers_of_tokens_are_powers_of_four_unless_given() -> None:
    assert PicturesConfig(every=1).keeps(16) == [1, 4, 16] and PicturesConfig(every=1).keeps(256)[-2:] == [64, 256]
    assert PicturesConfig(every=1, keep=(3,)).keeps(16) == [3] and PicturesConfig(every=1).keeps(1) == [1]
    assert "pictures" not in TokenizerTrainConfig(steps=1, pictures=PicturesConfig(every=1)).content()


def test_entropy_by_position_is_that_of_the_ids_there() -> None:
    counted = IdsByPosition(registers=6, codebooks=2, vocab_size=8, device=CPU)
    ids = torch.randint(8, (40, 6, 2), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 3
    for part in ids.split(16):
        counted.add(part)
    found = counted.entropies(DistContext())
    assert list(found) == [f"train/entropy_by_position/{position}" for position in (1, 2, 4, 6)]
    assert found["train/entropy_by_position/1"] == 0
    for position in (2, 4, 6):
        entropies = []
        for codebook in range(2):
            shares = np.bincount(ids[:, position - 1, codebook], minlength=8) / 40
            entropies.append(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())
        assert found[f"train/entropy_by_position/{position}"] == pytest.approx(np.mean(entropies))
    assert IdsByPosition(256, 1, 1 << 20, CPU).entropies(DistContext()) == {}
