"""Sweeps: each point is what an evaluation with its settings gives, from one encoding; a killed one resumes."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok import storage
from flextok.data.tokens import TokenStore
from flextok.errors import FlextokError, UsageError
from flextok.evaluate import parts, swept_samples
from flextok.evaluate.config import EvaluationConfig
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.protocol import IN_MEMORY
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.results import EvaluationResult, read_evaluation
from flextok.model.load import load_prior
from flextok.model.tokenizer import Tokenizer

SWEEP = {"keep": [1, 4], "guidance": [1.0, 2.0, 3.0], "steps": [1, 2]}
CONFIG = EvaluationConfig.model_validate(
    {**EVALUATION.model_dump(), "set_metrics": ["frechet", "precision"], "sweep": SWEEP}
)


def swept(**changes: object) -> EvaluationConfig:
    return EvaluationConfig.model_validate({**CONFIG.model_dump(), "sweep": {**SWEEP, **changes}})


def along(result: EvaluationResult, name: str, **others: float) -> dict[float, float]:
    (found,) = (each for each in result.series if each["name"] == name and each["protocol"]["sweep"]["at"] == others)
    return dict(zip(found["at"], found["values"], strict=True))


@pytest.fixture(scope="module")
def reconstructions(pipeline: TinyPipeline) -> EvaluationResult:
    return evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, CONFIG)


def test_points_are_what_evaluations_with_their_settings_give(
    pipeline: TinyPipeline, reconstructions: EvaluationResult
):
    for metric in ("fd_random_conv", "precision_random_conv", "psnr"):
        for keep in (1, 4):
            curve = along(reconstructions, f"{metric}_by_guidance", keep=keep, steps=2)
            assert list(curve) == [1.0, 2.0, 3.0]
            assert curve[EVALUATION.guidance] == reconstructions.value(metric, keep)
    other = EVALUATION.model_copy(update={"steps": 1, "guidance": 3.0, "keep": (4,)})
    alone = evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, other)
    assert along(reconstructions, "mae_by_guidance", keep=4, steps=1)[3.0] == alone.value("mae", 4)
    one = next(each for each in reconstructions.series if each["name"] == "mae_by_guidance")
    assert one["protocol"]["decoder"]["steps"] == one["protocol"]["sweep"]["at"]["steps"]
    sets = next(each for each in reconstructions.series if each["name"] == "fd_random_conv_by_guidance")
    assert sets["protocol"]["distance"]["images"] == 48 and sets["protocol"]["sweep"]["small_sample"]


def test_a_sweep_changes_no_other_number(pipeline: TinyPipeline, reconstructions: EvaluationResult):
    plain = EvaluationConfig.model_validate({**CONFIG.model_dump(), "sweep": None})
    without = evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, plain)
    assert [each for each in reconstructions.metrics if not each["name"].startswith("best_")] == without.metrics
    assert EVALUATION.content() == EvaluationConfig.model_validate({**EVALUATION.model_dump(), "sweep": None}).content()


@pytest.mark.parametrize(("select", "choose"), [(None, min), ("precision", max), ("mae", min)])
def test_the_best_is_chosen_by_the_stated_metric(pipeline: TinyPipeline, select: str | None, choose, tmp_path: Path):
    result = evaluate_reconstruction(pipeline.tokenizer, pipeline.val, str(tmp_path), swept(select=select, steps=None))
    best = next(each for each in result.metrics if each["name"].startswith("best_"))
    name = best["name"].removeprefix("best_")
    values = [value for each in result.series if each["name"] == f"{name}_by_guidance" for value in each["values"]]
    assert best["value"] == choose(values) and len(values) == best["protocol"]["selection"]["points"] == 6
    point = best["protocol"]["selection"]["point"]
    assert along(result, f"{name}_by_guidance", keep=point["keep"], steps=2)[point["guidance"]] == best["value"]


def test_each_image_is_encoded_once_and_decoded_at_each_point(
    pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    encoded, decoded = [], []
    encode, decode = Tokenizer.encode_latents, Tokenizer.detokenize
    monkeypatch.setattr(Tokenizer, "encode_latents", lambda self, z: encoded.append(len(z)) or encode(self, z))

    def counting(self, ids, **settings):
        decoded.append((settings["keep"], settings["guidance"], settings["steps"]))
        return decode(self, ids, **settings)

    monkeypatch.setattr(Tokenizer, "detokenize", counting)
    evaluate_reconstruction(pipeline.tokenizer, pipeline.val, str(tmp_path), CONFIG)
    assert encoded == [16, 16, 16]
    points = list(itertools.product(*SWEEP.values()))
    assert sorted(decoded) == sorted(3 * [*points, *((keep, 2.0, 2) for keep in (1, 2, 4))])


def test_samples_are_drawn_once_for_each_temperature(
    pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    ids_at = []
    decode = swept_samples.decode_ids
    monkeypatch.setattr(swept_samples, "decode_ids", lambda t, ids, *rest: ids_at.append(ids) or decode(t, ids, *rest))
    config = swept(guidance=None, steps=None, temperature=[0.0, 1.0])
    result = evaluate_generation(pipeline.samples.url, pipeline.val, pipeline.tokenizer, str(tmp_path), config)
    store, prior = TokenStore.open(pipeline.samples.url), load_prior(pipeline.prior)
    coldest = prior.generate(labels=store.labels().tolist(), temperature=0.0)
    drawn = torch.cat(ids_at[::2]).tolist()
    assert drawn == torch.cat(ids_at[1::2]).tolist()  # at both K
    assert drawn == [*coldest.tolist(), *store.ids().tolist()]
    name = "fd_random_conv_samples"
    curve = along(result, f"{name}_by_temperature", keep=4, guidance=2.0, steps=2)
    assert list(curve) == [0.0, 1.0]
    assert curve[1.0] == pytest.approx(result.value(name, 4), rel=1e-3)  # the temperature of the stored samples
    protocol = next(each["protocol"] for each in result.series if each["name"] == f"{name}_by_temperature")
    assert (protocol["sampler"]["temperature"], protocol["file_format"]) == (0.0, IN_MEMORY)


def test_stored_samples_are_decoded_anew(pipeline: TinyPipeline, tmp_path: Path):
    result = evaluate_generation(pipeline.samples.url, pipeline.val, pipeline.tokenizer, str(tmp_path), CONFIG)
    curve = along(result, "fd_random_conv_samples_by_guidance", keep=4, steps=2)
    assert curve[2.0] == pytest.approx(result.value("fd_random_conv_samples", 4), rel=1e-3)
    best = next(each for each in result.metrics if each["name"].startswith("best_"))
    assert best["name"] == "best_fd_random_conv_samples" and best["k"] is None


KILLED = """
import json, os, signal, sys
from flextok import storage
from flextok.evaluate.config import EvaluationConfig
from flextok.evaluate.reconstruction import evaluate_reconstruction
write, written = storage.write_bytes, []
def write_and_die(url, content):
    write(url, content)
    written.append(url)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
storage.write_bytes = write_and_die
tokenizer, corpus, parent, config = sys.argv[1:]
evaluate_reconstruction(tokenizer, corpus, parent, EvaluationConfig.model_validate_json(config))
"""


def test_a_killed_sweep_resumes_with_what_it_had(
    pipeline: TinyPipeline, reconstructions: EvaluationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = [pipeline.tokenizer, pipeline.val, str(tmp_path), CONFIG.model_dump_json()]
    died = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert died.returncode == -signal.SIGKILL
    (kept,) = (tmp_path / ".parts").iterdir()
    assert len(list(kept.glob("*.safetensors"))) == 2 and not list(tmp_path.glob("*/metrics.json"))
    encoded = []
    encode = Tokenizer.encode_latents
    monkeypatch.setattr(Tokenizer, "encode_latents", lambda self, z: encoded.append(len(z)) or encode(self, z))
    resumed = evaluate_reconstruction(pipeline.tokenizer, pipeline.val, str(tmp_path), CONFIG)
    assert encoded == [16]  # of three batches the last
    assert resumed.digest == reconstructions.digest
    for name in ("images.parquet", "grid.parquet"):
        assert storage.read_bytes(f"{resumed.url}/{name}") == storage.read_bytes(f"{reconstructions.url}/{name}")
    assert not storage.exists(str(kept))


def test_a_damaged_part_is_told(tmp_path: Path):
    part = tmp_path / "000000.safetensors"
    part.write_bytes(parts.pack([1.5, {"a": None}])[:-3])
    with pytest.raises(FlextokError, match=r"expected a part of an evaluation in .*000000.safetensors, found"):
        parts.unpack(str(part))


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ({"select": "density"}, "expected evaluation.sweep.select among the metrics that are measured"),
        ({"keep": [1, 9]}, "found 9"),
    ],
)
def test_what_cannot_be_swept_is_told(pipeline: TinyPipeline, sweep: dict, told: str, tmp_path: Path):
    with pytest.raises(UsageError, match=told):
        evaluate_reconstruction(pipeline.tokenizer, pipeline.val, str(tmp_path), swept(**sweep))


@pytest.mark.parametrize("sweep", [{"steps": [0]}, {"guidance": []}, {"keep": [2, 2]}, {"temperature": [-1.0]}])
def test_grids_are_of_different_possible_values(sweep: dict):
    with pytest.raises(ValueError, match=f"{next(iter(sweep))}: expected different values"):
        swept(**sweep)


def test_nan_in_a_decoder_is_one_line_and_loses_nothing(
    pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    decode, calls = Tokenizer.detokenize, []

    def broken(self, ids, *args, **kwargs):
        calls.append(len(ids))
        images = decode(self, ids, *args, **kwargs)
        if sum(calls) > 32 * 3:  # in the third batch
            images[1, 0, 3, 3] = float("nan")
        return images

    monkeypatch.setattr(Tokenizer, "detokenize", broken)
    with pytest.raises(
        FlextokError, match=r"expected finite pictures of 1 tokens, found NaN or infinity in 1 of 16 images"
    ):
        evaluate_reconstruction(pipeline.tokenizer, pipeline.val, str(tmp_path), EVALUATION)
    assert len(list((tmp_path / ".parts").glob("*/*.safetensors"))) == 2
    monkeypatch.undo()
    made = evaluate_reconstruction(pipeline.tokenizer, pipeline.val, str(tmp_path), EVALUATION)
    assert made.digest == pipeline.reconstruction.digest
    assert (
        read_evaluation(made.url).series == json.loads(storage.read_bytes(f"{made.url}/metrics.json"))["series"] == []
    )
