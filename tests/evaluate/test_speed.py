"""Speeds of a checkpoint: what is timed, where the batch stops growing, and the protocol beside the numbers."""

import json
from collections.abc import Callable

import pytest
import torch
from tiny_pipeline import TinyPipeline

from flextok.bench import speed
from flextok.bench.speed import measure_checkpoints
from pipelines import cli


def test_command_times_all_three_with_their_protocol(pipeline: TinyPipeline, capsys: pytest.CaptureFixture) -> None:
    arguments = [
        "speed", "--tokenizer", pipeline.tokenizer, "--prior", pipeline.prior, "--keep", "2", "--largest-batch", "4",
        "--repeats", "2", "--set", "evaluation.steps=3", "--set", "evaluation.samples.guidance=1.5", "--json",
    ]  # fmt: skip
    assert cli.run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["task"] for each in found["speeds"]] == ["encode", "encode", "decode", "decode", "prior", "prior"]
    for each in found["speeds"]:
        things = each["batch"] * (2 if each["task"] == "prior" else 1)
        assert each["per_second"] == pytest.approx(things / each["seconds"])
        assert each["unit"] == ("ids/s" if each["task"] == "prior" else "images/s")
        assert each["batch"] in ((1, 2, 4) if each["saturated"] else (1,))
    protocol = found["protocol"]
    assert (protocol["keep"], protocol["decoder"]["steps"], protocol["sampler"]["guidance"]) == (2, 3, 1.5)
    assert protocol["threads"] == torch.get_num_threads() and "median of 2 calls" in protocol["timing"]
    assert len(protocol["tokenizer"]) == len(protocol["prior"]) == 64
    assert cli.run(arguments[:-1]) == 0
    shown = capsys.readouterr().out
    assert "ids/s" in shown and "saturated" in shown


@pytest.mark.parametrize(
    ("more", "told"), [(["--keep", "5"], "expected --keep within 1..4"), (["--keep", "0"], "1..4")]
)
def test_tokens_that_are_not_there_are_told(
    pipeline: TinyPipeline, capsys: pytest.CaptureFixture, more: list[str], told: str
) -> None:
    assert cli.run(["speed", "--tokenizer", pipeline.tokenizer, *more]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("seconds", "largest", "saturated"),
    [
        (lambda batch: 1 + batch / 1000, 64, 64),  # the largest that may be tried
        (lambda batch: float(batch), 64, 1),  # nothing is won
        (lambda batch: max(1.0, batch / 8), 64, 8),
        (lambda batch: 1.0 if batch < 32 else None, 64, 16),  # no memory for 32
    ],
)
def test_batches_grow_while_that_is_worth_it(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float | None], largest: int, saturated: int
) -> None:
    def timed(call: Callable[[], int], repeats: int) -> list[float]:
        taken = seconds(call())
        if taken is None:
            raise torch.OutOfMemoryError("full")
        return [taken / 2, taken, 9 * taken]

    monkeypatch.setattr(speed, "timed", timed)
    found = list(speed._at_one_and_saturated(lambda batch: lambda: batch, largest, 3))
    assert found == [(1, seconds(1), False), (saturated, seconds(saturated), True)]


def test_a_tokenizer_alone_is_enough(pipeline: TinyPipeline) -> None:
    found = measure_checkpoints(pipeline.tokenizer, largest_batch=1, repeats=1)
    assert [(each.task, each.batch) for each in found.speeds] == [("encode", 1)] * 2 + [("decode", 1)] * 2
    assert "prior" not in found.protocol and found.protocol["keep"] == 4
