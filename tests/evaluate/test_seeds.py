"""The spread over seeds of the decoder's noise is that of evaluations with these seeds, from one encoding."""

from pathlib import Path

import numpy as np
import pytest
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.evaluate import images
from flextok.evaluate.config import EvaluationConfig, ReconstructionConfig, SweepConfig
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.results import EvaluationResult
from flextok.model.tokenizer import Tokenizer

NUMBERS = ("mae", "psnr", "fd_random_conv")


def test_spread_is_that_of_evaluations_with_these_seeds(
    pipeline: TinyPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(**changes: object) -> EvaluationResult:
        config = EVALUATION.model_copy(update={"keep": (1, 4), "grid_images": 0, **changes})
        return evaluate_reconstruction(pipeline.tokenizer, pipeline.val, str(tmp_path), config)

    alone = [made(seed=seed) for seed in (7, 8, 9)]
    encoded = []
    encode = Tokenizer.encode_latents
    monkeypatch.setattr(Tokenizer, "encode_latents", lambda self, z: encoded.append(len(z)) or encode(self, z))
    read = []
    crops_of = images.crops_of

    def counted(*given):
        for picture, crop in crops_of(*given):
            read.append(picture.key)
            yield picture, crop

    monkeypatch.setattr(images, "crops_of", counted)
    sweep = SweepConfig(guidance=(1.0,), keep=(4,))
    together = made(seed=7, seeds=3, sweep=sweep)
    assert encoded == [16, 16, 16]
    assert len(read) == len(set(read)) == 48  # each picture once, for all K, seeds and points
    for name in NUMBERS:
        for keep in (1, 4):
            values = [each.value(name, keep) for each in alone]
            assert len(set(values)) == 3
            spread = together.value(f"{name}_seed_spread", keep)
            assert spread == pytest.approx(np.std(values, ddof=1), rel=1e-2)
            (item,) = (each for each in together.metrics if (each["name"], each["k"]) == (f"{name}_seed_spread", keep))
            over = item["protocol"]["spread"]
            assert over["seeds"] == [7, 8, 9]
            assert over["values"] == pytest.approx(values, rel=1e-4)
            assert over["mean"] == pytest.approx(np.mean(values), rel=1e-4)
    others = [each for each in together.metrics if "seed_spread" not in each["name"] and "best_" not in each["name"]]
    assert others == alone[0].metrics
    assert len(together.metrics) - len(others) == 2 * 4 + 1


def test_one_seed_is_silent_and_none_is_told() -> None:
    assert "seeds" not in EvaluationConfig().part(ReconstructionConfig).content()
    with pytest.raises(UsageError, match="seeds"):
        parse_config(EvaluationConfig, {"seeds": 0}, "profile")
