"""The commands on single artifacts, on what the shrunk pipeline made."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from shrunk_smoke import Built

from pipelines import cli

pytestmark = pytest.mark.slow


def only(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return found


@pytest.fixture(scope="module")
def places(built: Built) -> dict[str, str]:
    root = built.workspace
    evaluations = {
        json.loads((path / "metrics.json").read_text())["provenance"]["kind"]: str(path)
        for path in (root / "evaluation").iterdir()
        if (path / "metrics.json").is_file()
    }
    return {
        "corpus": str(root / "corpora" / "scenes" / "val"),
        "tokens": str(only(root / "tokens" / "scenes" / "val")),
        "samples": str(only(root / "samples")),
        **{kind: str(only(root / "checkpoints" / kind)) for kind in ("vae", "tokenizer", "prior")},
        **evaluations,
    }


KINDS = ["corpus", "tokens", "samples", "vae", "tokenizer", "prior", "reconstructions", "generation", "report"]


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_says_what_an_artifact_is(places: dict[str, str], kind: str, capsys):
    assert cli.run(["inspect", "--json", places[kind]]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["kind"] == kind and len(described["digest"]) == 64 and described["uri"] == places[kind]
    assert cli.run(["inspect", places[kind]]) == 0
    assert described["digest"][:12] in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_verify_holds(places: dict[str, str], kind: str, capsys):
    assert cli.run(["verify", "--json", places[kind]]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] and document["problems"] == [] and document["kind"] == kind


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("corpus", "shards/000000.tar"),
        ("tokens", "000000.parquet"),
        ("tokenizer", "model.safetensors"),
        ("generation", "metrics.json"),
    ],
)
def test_verify_finds_a_changed_byte(places: dict[str, str], kind: str, file: str, capsys, tmp_path):
    copy = tmp_path / kind
    shutil.copytree(places[kind], copy)
    path = copy / file
    content = bytearray(path.read_bytes())
    place = content.index(b'"value": ') + 9 if file.endswith(".json") else len(content) // 2
    content[place] = ord("9") if content[place] != ord("9") else ord("8")
    path.write_bytes(content)
    assert cli.run(["verify", "--json", str(copy)]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["ok"] is False
    assert shown.err.splitlines()[-1].startswith("error: ")


def test_pictures_to_tokens_and_back(places: dict[str, str], capsys, tmp_path):
    for index in range(3):
        Image.new("RGB", (50, 40), (80 * index, 40, 200)).save(tmp_path / f"{index}.png")
    tokens, out = tmp_path / "tokens.parquet", tmp_path / "out"
    pictures = [str(tmp_path / f"{index}.png") for index in range(3)]
    assert cli.run(["encode", *pictures, "--tokenizer", places["tokenizer"], "--out", str(tokens)]) == 0
    table = pq.read_table(tokens)
    assert table["key"].to_pylist() == ["0", "1", "2"] and len(table["tokens"][0]) == 4
    arguments = ["--tokenizer", places["tokenizer"], "--out", str(out), "--keep", "1", "--keep", "4", "--steps", "2"]
    assert cli.run(["decode", str(tokens), *arguments]) == 0
    assert len(list(out.rglob("*.png"))) == 6
    assert capsys.readouterr().out.splitlines() == [str(tokens), str(out)]


def test_generated_pictures_have_names_and_size(places: dict[str, str], capsys, tmp_path):
    models = ["--prior", places["prior"], "--tokenizer", places["tokenizer"], "--out", str(tmp_path)]
    assert cli.run(["generate", *models, "--label", "2", "--num", "2", "--keep", "2"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000_class0002.png", "0001_class0002.png"]
    assert Image.open(tmp_path / "0000_class0002.png").size == (32, 32)
    assert cli.run(["generate", *models, "--label", "99"]) == 2
    assert "expected --label within 0..15" in capsys.readouterr().err
    assert cli.run(["generate", *models, "--text", "a dog"]) == 2
    assert "expected a class for this prior, found a text" in capsys.readouterr().err


def test_evaluations_and_report_without_the_pipeline(built: Built, places: dict[str, str], capsys, tmp_path):
    common = ["--tokenizer", places["tokenizer"], "--shards", places["corpus"], "--out", str(tmp_path)]
    settings = ["--profile", str(built.profile)]
    assert cli.run(["evaluate", *common, *settings]) == 0
    reconstructions = Path(capsys.readouterr().out.strip()).parent
    assert reconstructions.name == Path(places["reconstructions"]).name  # the same numbers, so the same digest
    assert cli.run(["evaluate", *common, "--samples", places["samples"], *settings]) == 0
    generation = Path(capsys.readouterr().out.strip()).parent
    evaluations = [str(reconstructions), str(generation), "--val-tokens", places["tokens"]]
    assert cli.run(["report", *evaluations, "--out", str(tmp_path), *settings]) == 0
    assert Path(capsys.readouterr().out.strip()).read_text().startswith("<!")


def test_shards_and_tokens_by_hand_are_those_of_the_pipeline(built: Built, places: dict[str, str], capsys, tmp_path):
    assert cli.run(["tokenize", places["corpus"], str(tmp_path), "--tokenizer", places["tokenizer"], "--dry-run"]) == 0
    assert "images           48" in capsys.readouterr().out
    assert cli.run(["tokenize", places["corpus"], str(tmp_path), "--tokenizer", places["tokenizer"]]) == 0
    ours = json.loads((tmp_path / "manifest.json").read_text())["digest"]
    assert ours == json.loads(Path(places["tokens"], "manifest.json").read_text())["digest"]


def test_training_by_hand_needs_no_dagster(built: Built, capsys, tmp_path):
    workspace = tmp_path / "copy"
    shutil.copytree(built.workspace, workspace, ignore=shutil.ignore_patterns("dagster"))
    settings = ["--profile", str(built.profile), "--set", "compute.train_workers=0", "--workspace", str(workspace)]
    for part in ("vae", "tokenizer", "prior"):
        assert cli.run(["train", part, *settings]) == 0
        url = Path(capsys.readouterr().out.strip())
        assert url.parent == workspace / "checkpoints" / part and (url / "model.safetensors").is_file()
    assert not (workspace / "dagster").exists()
