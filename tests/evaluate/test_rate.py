"""Codecs beside tokens: at the bytes of each K where there are such files, over bytes, and in the report."""

import math
from pathlib import Path

import numpy as np
import pytest
from given_pictures import pictures
from skimage.metrics import peak_signal_noise_ratio
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.config import parse_config
from flextok.data.codecs import CODECS, Compressed
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig, ReconstructionConfig, ReportConfig
from flextok.evaluate.rate import DOUBLINGS, Rates, token_bytes
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.report import write_report
from flextok.evaluate.results import EvaluationResult
from flextok.metrics import IMAGE_METRICS
from flextok.model.load import load_tokenizer


@pytest.fixture(scope="module")
def made(pipeline: TinyPipeline) -> EvaluationResult:
    config = EVALUATION.model_copy(update={"codecs": ("jpeg", "webp"), "metrics": ("mae", "psnr", "ssim")})
    return evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, config)


def curves(result: EvaluationResult) -> dict[str, dict[int, float]]:
    return {item["name"]: dict(zip(item["at"], item["values"], strict=True)) for item in result.series}


def test_numbers_stand_where_every_image_has_a_file() -> None:
    images = np.stack(list(pictures(6, 0, noise=15).values()))
    rates = Rates(["webp"], [IMAGE_METRICS["psnr"]], {1: 16, 32: 512})
    for batch in (images[:4], images[4:]):
        rates.add(rates.measure(batch))
    (number,) = rates.numbers({"data": "here"})
    backs = [Compressed(CODECS["webp"], image).at_most(512) for image in images]
    values = [peak_signal_noise_ratio(image, back) for image, back in zip(images, backs, strict=True)]
    assert (number.name, number.k) == ("webp_psnr", 32)  # none has a file of 16 bytes
    assert number.value == pytest.approx(np.mean(values))
    assert number.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(6))
    assert number.protocol["data"] == "here"
    assert (number.protocol["codec"]["name"], number.protocol["codec"]["bytes"]) == ("webp", 512)


def test_curves_are_over_the_bytes_of_tokens_and_beyond(pipeline: TinyPipeline, made: EvaluationResult) -> None:
    found = curves(made)
    # 16 ids are 4 bits: 1, 2 and 4 tokens take 1, 1 and 2 bytes, in which there is no file.
    assert list(found["tokens_psnr_by_bytes"]) == [1, 2]
    assert found["tokens_psnr_by_bytes"][2] == pytest.approx(made.value("psnr", 4), rel=1e-5)
    assert not any(item["name"].startswith(("jpeg_", "webp_")) for item in made.metrics)
    webp = found["webp_psnr_by_bytes"]
    assert max(webp) == 2 * 2**DOUBLINGS and min(webp) > 16
    assert list(webp.values()) == sorted(webp.values())
    assert made.curve("psnr") == pipeline.reconstruction.curve("psnr")


def test_report_draws_them(pipeline: TinyPipeline, made: EvaluationResult) -> None:
    inputs = pipeline.report_inputs()
    page = write_report(
        type(inputs)(**{**vars(inputs), "reconstruction_url": made.url}), pipeline.evaluations, ReportConfig()
    )
    html = Path(page.html_path).read_text()
    assert (
        '<span class="title">PSNR, dB, by bytes</span>' in html and '<span class="title">SSIM, by bytes</span>' in html
    )
    assert "<title>webp, bytes of an image 512:" in html
    without = write_report(inputs, pipeline.evaluations, ReportConfig())
    assert "by bytes</span>" not in Path(without.html_path).read_text()


def test_bytes_of_tokens(pipeline: TinyPipeline) -> None:
    tokenizer = load_tokenizer(pipeline.tokenizer)
    assert [token_bytes(tokenizer, keep) for keep in (1, 2, 3, 4)] == [1, 1, 2, 2]


def test_the_setting_is_silent_at_its_default_and_mistypes_are_told() -> None:
    assert "codecs" not in EvaluationConfig().part(ReconstructionConfig).content()
    with pytest.raises(UsageError, match="found 'wepb'; the nearest is 'webp'"):
        parse_config(EvaluationConfig, {"codecs": ["wepb"]}, "profile")
