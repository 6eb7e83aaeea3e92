"""The oracle of lengths beside plain loops over the stored numbers, and beside the threshold policy itself."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import rankdata
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.config import parse_config
from flextok.data.corpus.reader import Corpus
from flextok.data.images import to_model, to_png
from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.evaluate.config import OracleConfig, ReportConfig
from flextok.evaluate.images import stream_images
from flextok.evaluate.lengths import length_statistics
from flextok.evaluate.report import write_report
from flextok.evaluate.results import Metric
from flextok.metrics import IMAGE_METRICS
from flextok.metrics.lengths import gap, oracle
from flextok.model.load import load_tokenizer
from flextok.tokenize.lengths.threshold import ThresholdLength


@pytest.fixture(scope="module")
def images(pipeline: TinyPipeline) -> pl.DataFrame:
    return pl.read_parquet(f"{pipeline.reconstruction.url}/images.parquet").filter(pl.col("k") > 0)


@pytest.fixture(scope="module")
def config(images: pl.DataFrame) -> OracleConfig:
    """A threshold that some images meet with one token, some with more and some not at all."""
    return OracleConfig(metric="mae", threshold=float(images["mae"].median()))  # type: ignore[arg-type]


def measure(pipeline: TinyPipeline, config: OracleConfig) -> dict[tuple[str, int | None], Metric]:
    urls = pipeline.reconstruction.url, pipeline.val_tokens, pipeline.val
    metrics, _ = length_statistics(config, *urls, image_px=32)
    return {(each.name, each.k): each for each in metrics}


def by_hand(images: pl.DataFrame, threshold: float) -> dict[str, int]:
    """A plain loop over the rows."""
    found: dict[str, int] = {}
    for row in sorted(images.to_dicts(), key=lambda row: row["k"]):
        if row["mae"] <= threshold:
            found.setdefault(row["key"], row["k"])
    return found


def test_lengths_are_those_of_a_plain_loop(pipeline: TinyPipeline, images: pl.DataFrame, config: OracleConfig) -> None:
    found, enough = measure(pipeline, config), by_hand(images, config.threshold)
    keys = images["key"].unique().to_list()
    lengths = np.array([enough.get(key, 4) for key in keys])
    assert 0 < len(enough) < len(keys) and len(set(lengths.tolist())) > 1
    assert found["oracle_tokens", None].value == pytest.approx(lengths.mean())
    assert found["oracle_tokens", None].standard_error == pytest.approx(lengths.std(ddof=1) / len(keys) ** 0.5)
    assert found["oracle_reached", None].value == pytest.approx(len(enough) / len(keys))
    for keep in (1, 2, 4):
        assert found["fixed_over_oracle", keep].value == pytest.approx(np.clip(keep - lengths, 0, None).mean())
        assert found["fixed_short_of_oracle", keep].value == pytest.approx((keep < lengths).mean())
    # The store keeps all tokens of each image.
    assert found["policy_tokens", None].value == 4
    assert found["policy_over_oracle", None].value == found["fixed_over_oracle", 4].value
    protocol = found["policy_over_oracle", None].protocol
    assert protocol["oracle"] == {**config.model_dump(), "candidates": [1, 2, 4], "rule": protocol["oracle"]["rule"]}
    assert "decoder" in protocol and protocol["tokens"] == TokenStore.open(pipeline.val_tokens).digest


def test_it_correlates_with_the_bytes_of_pngs_as_ranks_do(
    pipeline: TinyPipeline, images: pl.DataFrame, config: OracleConfig
) -> None:
    enough = by_hand(images, config.threshold)
    keys = images["key"].unique().to_list()
    sizes = {
        key: len(to_png(image))
        for batch in stream_images(Corpus.open(pipeline.val), keys, 32, 16)
        for key, image in zip(batch.keys, batch.images_BHWC, strict=True)
    }
    ranks = rankdata([enough.get(key, 4) for key in keys]), rankdata([sizes[key] for key in keys])
    found = measure(pipeline, config)["oracle_complexity_correlation", None].value
    assert found == pytest.approx(np.corrcoef(*ranks)[0, 1])
    same = config.model_copy(update={"threshold": 1.0})
    assert ("oracle_complexity_correlation", None) not in measure(pipeline, same)


def test_it_is_what_the_threshold_policy_chooses(
    pipeline: TinyPipeline, images: pl.DataFrame, config: OracleConfig
) -> None:
    """With the same decoder; three tokens were not measured, so four stand for them."""
    sampler = {name: getattr(EVALUATION, name) for name in ("steps", "guidance", "norm_guidance", "seed")}
    policy = ThresholdLength(metric="mae", eps=config.threshold, **sampler)
    tokenizer = load_tokenizer(pipeline.tokenizer)
    (batch,) = stream_images(Corpus.open(pipeline.val), images["key"].unique().to_list(), 32, 64)
    with torch.inference_mode():
        ids = tokenizer.tokenize(to_model(batch.images_BHWC))
        chosen = dict(
            zip(batch.keys, policy.lengths(tokenizer, batch.images_BHWC, ids, batch.keys).tolist(), strict=True)
        )
    enough = by_hand(images, config.threshold)
    assert {key: 4 if tokens == 3 else tokens for key, tokens in chosen.items()} == {
        key: enough.get(key, 4) for key in chosen
    }


def test_likeness_counts_upwards_and_an_early_hit_stands() -> None:
    values = np.array([[30.0, 20.0, 40.0], [10.0, 25.0, 26.0], [1.0, 2.0, 3.0]])
    found = oracle(values, [1, 2, 4], IMAGE_METRICS["psnr"], 25)
    assert found.tokens_N.tolist() == [1, 2, 4]
    assert found.reached_N.tolist() == [True, True, False]
    assert gap(np.array([3, 1, 4]), found) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_report_has_them_where_a_threshold_is_given(pipeline: TinyPipeline, config: OracleConfig) -> None:
    made = write_report(pipeline.report_inputs(), pipeline.evaluations, ReportConfig(oracle=config))
    page = Path(made.html_path).read_text()
    assert "policy_short_of_oracle" in page and "oracle_share_by_tokens" in Path(made.url, "metrics.json").read_text()
    assert "oracle" not in ReportConfig().content()
    with pytest.raises(UsageError, match=r"expected ssim in .* for report\.oracle"):
        measure(pipeline, OracleConfig(metric="ssim", threshold=0.5))
    with pytest.raises(UsageError, match="the nearest is 'mae'"):
        parse_config(ReportConfig, {"oracle": {"metric": "maee", "threshold": 1}}, "profile")
