"""Length policies: their register, short forms and fingerprints, one rule of likeness, and a policy from outside."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tokenize_helpers import IMAGES

import flextok
from flextok.config import parse_config
from flextok.data import images
from flextok.data.corpus.pictures import Pictures, crops_of
from flextok.data.corpus.reader import Corpus, Shard
from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.metrics.base import IMAGE_METRICS, ImageMetric
from flextok.model.load import TokenizerSpec
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.job import tokenize_corpus
from flextok.tokenize.lengths.base import LENGTHS, LengthPolicy, parse_length
from flextok.tokenize.lengths.threshold import ThresholdLength, shortest_good
from flextok.tokenize.tasks import shard_tasks


def brightness_of(pixels: np.ndarray) -> np.ndarray:
    """A policy may use what its own module defines."""
    return pixels.reshape(len(pixels), -1).mean(axis=1)


@LENGTHS.register
class BrightnessLength(LengthPolicy):
    """Bright pictures keep more tokens."""

    kind: Literal["brightness"] = "brightness"
    most: int = 4

    def lengths(self, tokenizer: Any, pixels: np.ndarray, ids: Any, sample_ids: Sequence[str]) -> np.ndarray:
        return np.clip((brightness_of(pixels) / 256 * self.most).astype(int) + 1, 1, self.most)


def test_a_policy_from_a_test_file_runs_in_the_actors(inputs, ray_session, tmp_path) -> None:
    values = {"batch_size": 8, "length": parse_length("brightness:most=6")}
    config = parse_config(TokenizeConfig, values, "test")
    made = tokenize_corpus(inputs.corpus, inputs.tokenizer, str(tmp_path), config, inputs.compute, progress=False)
    pictures = Pictures(Corpus.open(inputs.corpus))
    pixels = np.stack([crop for _, crop in crops_of((pictures[row] for row in range(IMAGES)), 32)])
    found = TokenStore.open(made.url).lengths()
    np.testing.assert_array_equal(found, BrightnessLength(most=6).lengths(None, pixels, None, []))
    assert len(set(found.tolist())) > 1


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("all", {"kind": "all"}),
        ("16", {"kind": "fixed", "tokens": 16}),
        ("fixed:tokens=16", {"kind": "fixed", "tokens": "16"}),
        ("mae:0.02", {"kind": "threshold", "metric": "mae", "eps": "0.02"}),
        ("threshold:metric=psnr,eps=30", {"kind": "threshold", "metric": "psnr", "eps": "30"}),
        ("brightness", {"kind": "brightness"}),
    ],
)
def test_short_forms(text: str, values: dict[str, Any]) -> None:
    assert parse_length(text) == values
    config = parse_config(TokenizeConfig, {"length": values}, "test")
    assert config.length.kind == values["kind"]
    assert parse_config(TokenizeConfig, config.model_dump(mode="json"), "test") == config


def test_mistakes_name_what_there_is() -> None:
    with pytest.raises(UsageError, match="expected --length all, a number of tokens, METRIC:EPS"):
        parse_length("short")
    for length, said in (
        ({"kind": "fixd"}, "nearest is 'fixed'"),
        ({"kind": "threshold", "metric": "psn", "eps": 1}, "found 'psn'; the nearest is 'psnr'"),
        ({"kind": "threshold", "eps": -1}, "'length.eps'"),
        ({"kind": "fixed", "tokn": 1}, "nearest known key is 'length.tokens'"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_config(TokenizeConfig, {"length": length}, "test")


@pytest.mark.parametrize(
    ("values", "fingerprint"),
    [
        ({}, "2eeef67071d9a8a2d9a1940e3ba0c2de15c305ff4a9d25c9f55ab3bf860967d3"),
        (
            {"batch_size": 8, "max_reject_fraction": 0.5},
            "2eeef67071d9a8a2d9a1940e3ba0c2de15c305ff4a9d25c9f55ab3bf860967d3",
        ),
        (
            {
                "keep": 4,
                "dtype": "bfloat16",
                "views": ("center", "end_flip"),
                "length": {"kind": "fixed", "tokens": 3},
            },
            "9ac5d16db44d8c8ea6b33f2b6db6f31a8d4d2f0eadf427391a6069c2e2143f64",
        ),
    ],
)
def test_shards_made_before_policies_were_a_register_are_found_finished(values: dict, fingerprint: str) -> None:
    """Computed by version 0.1.0 at c63be65."""
    assert _fingerprint(values) == fingerprint


def test_shards_made_by_likeness_of_unrounded_pictures_are_made_again() -> None:
    before = "d43e1562d6ea52214b9b2c305bdb51a58cea1aae2dddc2760f53dcd8d76e73cf"
    assert _fingerprint({"length": {"kind": "threshold", "metric": "psnr", "eps": 20}}) != before


def _fingerprint(values: dict[str, Any]) -> str:
    spec = TokenizerSpec("tokenizer", "ab" * 32, 32, 16, 320, 1)
    shard = Shard("000000", "corpus/shards/000000.tar", 20, 1000, "cd" * 32)
    corpus = Corpus("corpus", "ef" * 32, "scenes", "train", None, 20, [shard], {"files": {}})
    (task,) = shard_tasks(corpus, spec, "dest", TokenizeConfig.model_validate(values))
    return task.meta.fingerprint


class Echo:
    """In the place of a tokenizer: decodes to what it was given."""

    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels

    def detokenize(self, ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return images.to_model(self._pixels)


@pytest.mark.parametrize("metric", ["mae", "mse", "psnr"])
def test_likeness_is_the_registered_metric_of_8_bit_pictures(inputs, metric: str) -> None:
    tokenizer = flextok.load_tokenizer(inputs.tokenizer)
    pictures = Pictures(Corpus.open(inputs.corpus))
    pixels = np.stack([crop for _, crop in crops_of((pictures[row] for row in range(4)), 32)])
    ids = tokenizer.tokenize(images.to_model(pixels))
    names = [f"{row}" for row in range(4)]
    policy = ThresholdLength(metric=metric, eps=1, steps=2, seed=5)
    decoded = images.to_uint8(tokenizer.detokenize(ids, keep=3, steps=2, guidance=1.0, seed=5, sample_ids=names))
    found = policy.measure(tokenizer, pixels, ids, np.full(4, 3), names)
    np.testing.assert_array_equal(found, IMAGE_METRICS[metric](decoded, pixels))


def test_equal_pictures_have_a_likeness_of_100_db() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    found = ThresholdLength(metric="psnr", eps=1).measure(
        Echo(pixels),  # pyright: ignore[reportArgumentType]
        pixels,
        torch.zeros(2, 4),
        np.full(2, 4),
        ["a", "b"],
    )
    assert found.tolist() == [100.0, 100.0]


@pytest.mark.parametrize(("better", "expected"), [("lower", 3), ("higher", 6)])
def test_any_registered_metric_may_judge_and_says_its_direction(better: Any, expected: int) -> None:
    """A decoder whose pictures differ by 8 - keep levels; close enough is a difference of at most, or at least, 5 or 2."""

    class Fading:
        def detokenize(self, ids: torch.Tensor, keep: list[int], **_: Any) -> torch.Tensor:
            levels = np.array([8 - k for k in keep], np.uint8)
            return images.to_model(np.broadcast_to(levels[:, None, None, None], (len(keep), 4, 4, 3)).copy())

    def compute(found: np.ndarray, references: np.ndarray) -> np.ndarray:
        difference = (found.astype(float) - references).reshape(len(found), -1).max(axis=1)
        return difference if better == "lower" else 8 - difference

    name = f"largest_{better}"
    IMAGE_METRICS.add(name, ImageMetric(name=name, definition="toy", unit="", better=better, compute=compute))
    try:
        policy = ThresholdLength(metric=name, eps=5 if better == "lower" else 6)
        pixels = np.zeros((2, 4, 4, 3), np.uint8)
        found = policy.lengths(Fading(), pixels, torch.zeros(2, 8), ["a", "b"])  # type: ignore[arg-type]
    finally:
        IMAGE_METRICS.remove(name)
    assert found.tolist() == [expected, expected]


def test_search_finds_the_first_good_length_of_every_falling_curve() -> None:
    """Against looking at every length."""
    rng = np.random.default_rng(0)
    curves = np.sort(rng.random((50, 13)), axis=1)[:, ::-1]
    curves[::5] = rng.random((10, 13))  # not falling: every number is tried
    found = shortest_good(lambda rows, keep: curves[rows, keep - 1], 0.3, 50, 13)
    good = curves <= 0.3
    expected = np.where(good.any(axis=1), good.argmax(axis=1) + 1, 13)
    grid = curves[:, [0, 1, 3, 7, 12]]
    falling = (np.diff(curves, axis=1) <= 0).all(axis=1) | ~(np.diff(grid, axis=1) <= 0).all(axis=1)
    assert falling.sum() >= 45
    np.testing.assert_array_equal(found[falling], expected[falling])


def test_a_metric_for_larger_pictures_is_refused_before_any_work(inputs, tmp_path) -> None:
    config = TokenizeConfig.model_validate({"length": {"kind": "threshold", "metric": "ms_ssim", "eps": 0.9}})
    with pytest.raises(UsageError, match="at least 161 px for ms_ssim, found 32 px"):
        tokenize_corpus(inputs.corpus, inputs.tokenizer, f"{tmp_path}/t", config, inputs.compute, progress=False)
    assert not (tmp_path / "t").exists() or not list((tmp_path / "t").iterdir())
