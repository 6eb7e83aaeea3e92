"""Folders of small pictures, and the command that measures them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines import cli

SIZE_PX = 32
SETTINGS = ["--set", "evaluation.extractor=random_conv", "--set", "evaluation.extractor_input_px=null"]


def pictures(count: int, seed: int, noise: int = 0, size_px: int = SIZE_PX) -> dict[str, np.ndarray]:
    """Pictures of coarse colours, the same for all seeds but for their noise, by name."""
    coarse = np.random.default_rng(0).integers(20, 230, (count, 4, 4, 3))
    fine = np.kron(coarse, np.ones((1, size_px // 4, size_px // 4, 1)))
    fine += np.random.default_rng(seed).integers(-noise, noise + 1, fine.shape)
    return {f"{index:03d}": image for index, image in enumerate(fine.clip(0, 255).astype(np.uint8))}


def save(folder: Path, images: Mapping[str, np.ndarray], ending: str = "png") -> str:
    """Write them into `folder`, which is given back."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        Image.fromarray(image).save(folder / f"{name}.{ending}")
    return str(folder)


def evaluate(images: str, reference: str, out: Path, capsys, *more: str) -> Path:
    """The folder of the evaluation that the command makes."""
    assert cli.run(["evaluate", "--images", images, "--reference", reference, "--out", str(out), *SETTINGS, *more]) == 0
    return Path(capsys.readouterr().out.strip()).parent


def numbers(evaluation: Path) -> dict[str, float]:
    """Its numbers by name."""
    return {item["name"]: item["value"] for item in json.loads((evaluation / "metrics.json").read_text())["metrics"]}


def protocols(evaluation: Path) -> dict[str, dict]:
    """Their protocols by name."""
    return {item["name"]: item["protocol"] for item in json.loads((evaluation / "metrics.json").read_text())["metrics"]}
