"""Every failure a user can cause ends in one clear line and exit code 1 or 2."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipelines import cli

COMMANDS = [
    "run", "status", "refresh", "ui", "daemon", "shard", "train", "tokenize", "encode", "decode", "generate", "evaluate", "speed",
    "report", "coordinate-check", "encode-text", "export-samples", "import-checkpoint", "inspect", "verify", "lineage",
]  # fmt: skip


def fails(capsys, arguments: list[str]) -> tuple[int, str]:
    """The exit code and the error line of a command that must fail."""
    capsys.readouterr()
    code = cli.run(arguments)
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert lines and lines[-1].startswith("error: "), shown.err
    assert "Traceback" not in shown.err
    return code, lines[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_debug(command: str, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--debug" in shown and "--help" in shown


WRONG_USAGE = {
    "no such command": (["frobnicate"], "No such command"),
    "no such option": (["run", "--bogus"], "No such option"),
    "missing argument": (["inspect"], "Missing argument"),
    "missing option": (["encode", "a.png", "--out", "x"], "--tokenizer"),
    "not a number": (["shard", "a", "b", "--workers", "many"], "workers"),
    "unknown profile": (["run", "--profile", "smok"], "did you mean 'smoke'"),
    "profile file missing": (["status", "--profile", "nowhere.yaml"], "found none at nowhere.yaml"),
    "unknown key": (["run", "--set", "tokenizer.train.stpes=3"], "nearest known key is 'tokenizer.train.steps'"),
    "image size that does not fit": (["run", "--set", "image_size=30"], "image_size 30 is not a multiple"),
    "unknown selection": (["run", "--select", "tokenizers"], "expected a selection of the assets corpus"),
    "source missing": (["run", "--select", "corpus", "--set", "corpus.source=nowhere"], "nowhere"),
    "artifact missing": (["inspect", "nowhere"], "expected an artifact"),
    "lineage of nothing": (["lineage", "nowhere"], "expected an artifact"),
    "verify nothing": (["verify", "nowhere"], "expected an artifact"),
    "shard nothing": (["shard", "nowhere", "goal"], "nowhere"),
    "shard without goal": (["shard", "only"], "expected SOURCE... DEST"),
    "tokenize no corpus": (["tokenize", "nowhere", "goal", "--tokenizer", "nowhere"], "nowhere"),
    "encode nothing": (["encode", "nowhere.png", "--tokenizer", "nowhere", "--out", "x.parquet"], "nowhere.png"),
    "decode no file": (["decode", "nowhere.parquet", "--tokenizer", "nowhere", "--out", "x"], "nowhere"),
    "generate without prior": (["generate", "--prior", "nowhere", "--tokenizer", "nowhere", "--out", "x"], "nowhere"),
    "import nothing": (["import-checkpoint", "nowhere", "goal"], "nowhere"),
    "train without corpus": (["train", "vae"], "expected a corpus"),
}


@pytest.mark.parametrize("case", WRONG_USAGE)
def test_wrong_usage_is_exit_code_2(case: str, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, expected = WRONG_USAGE[case]
    code, line = fails(capsys, arguments)
    assert code == 2 and expected in line, line


def pictures(folder: Path, count: int = 4) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (40, 40), (index * 20, 80, 10)).save(folder / f"{index}.png")


def test_a_source_without_val_split_says_so_before_any_work(capsys, tmp_path):
    pictures(tmp_path / "source" / "train" / "cat")
    arguments = ["--workspace", str(tmp_path / "w"), "--set", f"corpus.source={tmp_path / 'source'}"]
    code, line = fails(capsys, ["run", *arguments])
    assert code == 2 and "no val split" in line
    assert not (tmp_path / "w" / "corpora").exists()


def test_an_empty_corpus_says_so(capsys, tmp_path):
    (tmp_path / "source").mkdir()
    arguments = ["--workspace", str(tmp_path / "w"), "--set", f"corpus.source={tmp_path / 'source'}"]
    code, line = fails(capsys, ["refresh", *arguments])
    assert code in (1, 2) and str(tmp_path / "source") in line


def test_pictures_without_classes_are_told_before_the_prior_wants_them(capsys, tmp_path):
    for split in ("train", "val"):
        pictures(tmp_path / "source" / split)
    arguments = ["--workspace", str(tmp_path / "w"), "--set", f"corpus.source={tmp_path / 'source'}"]
    assert cli.run(["run", "--select", "corpus,image_shards", *arguments]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "image_shards[scenes/train]: 4 of 4 samples have no class" in warnings[0]
    condition = ["--set", "prior.model.condition=none"]
    assert cli.run(["run", "--select", "image_shards", *arguments, *condition]) == 0
    assert "warning: " not in capsys.readouterr().err


def test_a_missing_input_says_how_to_make_it(capsys, tmp_path):
    code, line = fails(capsys, ["run", "--select", "prior", "--workspace", str(tmp_path)])
    assert code == 1 and "expected token_shards to be there for prior" in line


def test_a_workspace_that_cannot_be(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for workspace in (file, file / "below"):
        code, line = fails(capsys, ["status", "--workspace", str(workspace)])
        assert code == 2 and "--workspace" in line


def test_a_full_disk_is_one_line(capsys, monkeypatch, tmp_path):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("flextok.storage.atomic_write", full)
    arguments = ["--workspace", str(tmp_path), "--select", "corpus,image_shards"]
    code, line = fails(capsys, ["run", *arguments])
    assert code == 1 and ("full" in line or "space" in line.lower())


def test_status_json_is_one_document(capsys, tmp_path):
    assert cli.run(["status", "--json", "--workspace", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["profile"] == "smoke" and len(document["assets"]) == 14
    assert {"asset", "partition", "status", "reasons", "waits_for", "digest", "uri"} == set(document["assets"][0])


def test_debug_shows_the_traceback(capsys):
    assert cli.run(["inspect", "nowhere", "--debug"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.splitlines()[-1].startswith("error: ")


# A process whose parent was started in the background ignores Ctrl-C; a person's terminal does not do that.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pipelines.cli import main
main()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_finished(how: signal.Signals, tmp_path):
    """Ctrl-C in the middle of a stage: exit code 1, one clear line, and the next refresh goes on from there."""
    workspace = tmp_path / "w"
    arguments = [
        "--workspace", str(workspace), "--set", "corpus.scenes.train_samples=64", "--set", "corpus.scenes.val_samples=16",
        "--set", "latents.train.steps=1000000", "--set", "compute.train_workers=0",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "refresh", *arguments],
        stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stderr is not None
    told: list[str] = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("train vae"):
            process.send_signal(how)
            break
    told += process.stderr.readlines()
    assert process.wait() == 1
    assert told[-1].startswith("error: interrupted"), told
    states = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "status", "--json", *arguments],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True,
    )  # fmt: skip
    fresh = [item["asset"] for item in json.loads(states.stdout)["assets"] if item["status"] == "fresh"]
    assert fresh == ["corpus", "corpus", "image_shards", "image_shards"]


def test_after_a_kill_the_same_stage_goes_on(tmp_path):
    """SIGKILL in the middle of a stage leaves Dagster's run open and its place in the pool taken."""
    arguments = [
        "--workspace", str(tmp_path / "w"), "--set", "corpus.scenes.train_samples=64",
        "--set", "corpus.scenes.val_samples=16", "--set", "latents.train.steps=100", "--set", "latents.train.batch_size=8",
        "--set", "compute.train_workers=0",
    ]  # fmt: skip
    command = [sys.executable, "-m", "pipelines.cli", "run", "--select", "+latents", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("train vae"):
            process.kill()
            break
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    again = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "run", "--select", "latents", *arguments],
        check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120,
    )  # fmt: skip
    assert again.returncode == 0 and "latents: done" in again.stderr, again.stderr
