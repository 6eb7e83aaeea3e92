"""Two halves of one corpus are as near as sets of their size can be: distances of 0 within their intervals."""

from pathlib import Path

import numpy as np
import pytest

from flextok.data.images import decode
from flextok.data.scenes import ScenesConfig, draw_scene
from flextok.evaluate.config import PicturesConfig
from flextok.evaluate.pictures import evaluate_pictures
from flextok.evaluate.results import EvaluationResult

SCENES = 600
CONFIG = PicturesConfig(set_metrics=("frechet", "kernel_100"), bootstrap=100, extractor="random_conv")


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Every other one of drawn scenes, as ADM's files."""
    folder = tmp_path_factory.mktemp("halves")
    config = ScenesConfig(train_samples=1, val_samples=SCENES, image_px=32)
    drawn = np.stack([decode(draw_scene(config, "val", index).png).rgb for index in range(SCENES)])
    for name, part in (("even", drawn[::2]), ("odd", drawn[1::2])):
        np.savez(folder / f"{name}.npz", part)
    return folder / "even.npz", folder / "odd.npz"


def measured(images: Path, reference: Path, out: Path) -> EvaluationResult:
    return evaluate_pictures(str(images), str(reference), str(out), CONFIG)


def test_halves_are_0_apart_within_their_intervals(halves: tuple[Path, Path], tmp_path: Path) -> None:
    even, odd = halves
    darker = tmp_path / "darker.npz"
    np.savez(darker, (np.load(odd)["arr_0"] * 0.8).astype(np.uint8))
    near, far = measured(odd, even, tmp_path), measured(darker, even, tmp_path)
    for close, other in zip(near.metrics, far.metrics, strict=True):
        assert close["interval"]["low"] - close["standard_error"] <= 0 <= close["interval"]["high"], close["name"]
        assert other["interval"]["low"] > close["interval"]["high"], close["name"]
    kernel = near.metrics[1]
    assert kernel["name"] == "kd_100_random_conv"
    assert kernel["interval"]["low"] <= 0  # it has no bias; a Fréchet distance has one, upwards, of some 32 / 300
