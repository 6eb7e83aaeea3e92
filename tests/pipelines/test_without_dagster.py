"""Commands that do one job of the library never import Dagster, and help comes at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from old_workspace import unpack
from PIL import Image

from flextok.provenance import newest_artifact

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from pipelines import cli
code = 0
for arguments in json.loads(sys.argv[1]):
    code = cli.run(arguments) or code
    assert not any(name.split(".")[0] == "dagster" for name in sys.modules), arguments
sys.exit(code)
"""


def run(*commands: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_help_of_every_command():
    commands = [
        "run", "status", "refresh", "ui", "daemon", "shard", "train", "tokenize", "encode", "decode", "generate", "evaluate", "speed",
        "report", "coordinate-check", "encode-text", "export-samples", "import-checkpoint", "inspect", "verify", "lineage",
    ]  # fmt: skip
    done = run(["--help"], *([command, "--help"] for command in commands))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_work_on_files_alone(tmp_path):
    old = unpack(tmp_path)
    root = str(old.workspace)
    tokenizer, prior = (str(newest_artifact(f"{root}/checkpoints/{kind}")) for kind in ("tokenizer", "prior"))
    val, tokens = f"{root}/corpora/scenes/val", str(newest_artifact(f"{root}/tokens/scenes/val"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (40, 40), (200, 80, 10)).save(pictures / "one.png")
    done = run(
        ["inspect", tokens], ["verify", val], ["lineage", prior],
        ["shard", str(pictures), str(tmp_path / "shards")],
        ["encode", str(pictures / "one.png"), "--tokenizer", tokenizer, "--out", str(tmp_path / "one.parquet")],
        ["decode", str(tmp_path / "one.parquet"), "--tokenizer", tokenizer, "--out", str(tmp_path / "a"), "--steps", "1"],
        ["generate", "--prior", prior, "--tokenizer", tokenizer, "--out", str(tmp_path / "b"), "--num", "1"],
        ["evaluate", "--tokenizer", tokenizer, "--shards", val, "--out", str(tmp_path / "c"), "--profile", str(old.profile)],
        ["tokenize", val, str(tmp_path / "d"), "--tokenizer", tokenizer, "--dry-run"],
        ["train", "tokenizer", *old.arguments()],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
