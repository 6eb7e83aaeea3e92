"""The registers of metrics: names, settings that name them, and the document made of them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig, GenerationConfig, ReconstructionConfig, SamplingConfig
from flextok.metrics import IMAGE_METRICS, SET_METRICS
from flextok.metrics.base import STATISTICS

ROOT = Path(__file__).parents[2]


def test_document_is_current():
    program = [sys.executable, "-m", "flextok.metrics"]
    made = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "metrics.md").read_text() == made, "run python -m flextok.metrics > docs/metrics.md"


def test_names_are_those_of_metrics_not_of_modules():
    assert {"mae", "mse", "psnr"} <= set(IMAGE_METRICS.names())
    assert "frechet" in SET_METRICS.names()
    assert not {"pixel", "statistics", "base"} & {*IMAGE_METRICS.names(), *SET_METRICS.names()}
    assert {"codebook_usage", "prior_gain", "mae_reduction"} <= set(STATISTICS.names())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"metrics": ["mae", "pnsr"]}, "found 'pnsr'; the nearest is 'psnr'"),
        ({"set_metrics": ["frechett"]}, "found 'frechett'; the nearest is 'frechet'"),
        ({"metrics": ["mae", "mae"]}, "expected each metric of images once, found mae, mae"),
        ({"metrics": []}, "'metrics'"),
    ],
)
def test_a_mistyped_name_is_told(values: dict, told: str):
    with pytest.raises(UsageError) as error:
        parse_config(EvaluationConfig, values, "profile")
    assert told in str(error.value)


def test_each_evaluation_stores_what_it_reads():
    """The recipes of evaluations from before metrics could be named, which their digests cover."""
    config = EvaluationConfig(batch_size=5)
    decoding = {"steps": 25, "guidance": 7.5, "norm_guidance": True, "seed": 0, "precision": "float32"}
    distance = {"distance_images": None, "extractor": "efficientnet_lite0", "extractor_input_px": None}
    shown = {"keep": None, "max_images": None, "grid_images": 10}
    assert config.part(ReconstructionConfig).content() == {**decoding, **distance, **shown}
    assert config.part(GenerationConfig).content() == {**decoding, **distance}
    assert config.part(SamplingConfig).content() == {
        **decoding, "keep": None,
        "samples": {"num": 256, "keep": None, "temperature": 1.0, "top_k": None, "top_p": None, "guidance": 1.0},
    }  # fmt: skip


def test_other_metrics_are_part_of_the_recipe():
    config = EvaluationConfig(metrics=("psnr",))
    assert config.part(ReconstructionConfig).content()["metrics"] == ["psnr"]
    assert "metrics" not in config.part(GenerationConfig).content()


def test_psnr_of_images_is_the_same_alone_and_in_a_batch():
    images, originals = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), dtype=np.uint8)
    psnr = IMAGE_METRICS["psnr"]
    alone = np.concatenate([psnr(images[i : i + 1], originals[i : i + 1]) for i in range(5)])
    np.testing.assert_array_equal(alone, psnr(images, originals))


def test_the_protocol_of_a_set_metric_is_what_it_was():
    """Digests of evaluations cover it, and numbers of earlier ones are to be compared with those of today."""
    extractor, reference = {"name": "random_conv", "width": 32}, {"digest": "d", "images": 40}
    assert SET_METRICS["frechet"].protocol(extractor, 70, reference) == {
        "definition": "Fréchet distance of Gaussians fitted to features (Heusel et al. 2017), by torch-fidelity",
        "extractor": extractor,
        "images": 70,
        "reference": reference,
        "images_needed": 64,
        "small_sample": True,
        "statistics": "float64 sums, sample covariance",
    }
