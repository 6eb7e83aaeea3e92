"""The commands on single artifacts, on what the shrunk pipeline made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from shrunk_smoke import Built

from flextok.data.corpus.reader import Corpus
from flextok.data.images import center_crop, to_model, to_uint8
from flextok.data.tokens import TokenStore
from flextok.model.load import load_prior, load_tokenizer
from flextok.model.sampling.config import LinearGuidance
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
        "reference": str(only(root / "reference")),
        **{kind: str(only(root / "checkpoints" / kind)) for kind in ("vae", "tokenizer", "prior")},
        **evaluations,
    }


KINDS = [
    "corpus", "tokens", "samples", "vae", "tokenizer", "prior", "reference", "reconstructions", "generation", "report",
]  # fmt: skip


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


def test_a_picture_is_completed(places: dict[str, str], capsys, tmp_path):
    """All but its last token stay: drawn greedily, it is what the prior makes of those tokens."""
    Image.effect_noise((50, 40), 90).convert("RGB").save(tmp_path / "given.png")
    given, out = str(tmp_path / "given.png"), tmp_path / "out"
    models = ["--prior", places["prior"], "--tokenizer", places["tokenizer"], "--out", str(out)]
    law = ["--set", "temperature=0", "--set", "guidance=2", "--set", "guidance_schedule.kind=linear"]
    assert cli.run(["generate", *models, *law, "--label", "2", "--num", "2", "--from", given, "--keep-from", "3"]) == 0
    tokenizer, prior = load_tokenizer(places["tokenizer"]), load_prior(places["prior"])
    ids = tokenizer.tokenize(to_model(center_crop(Image.open(given), 32)[None])).repeat(2, 1)
    drawn = prior.generate([2, 2], temperature=0, guidance=2, guidance_schedule=LinearGuidance(), prefix=ids[:, :3])
    assert torch.equal(drawn[:, :3], ids[:, :3])
    expected = to_uint8(tokenizer.detokenize(drawn))
    for index in range(2):
        assert (
            np.abs(np.asarray(Image.open(out / f"{index:04d}_class0002.png")).astype(int) - expected[index]).max() <= 1
        )
    for wrong, complaint in (
        (["--from", given], "--from and --keep-from together"),
        (["--from", given, "--keep-from", "4"], "--keep-from within 1..3"),
        (["--from", str(tmp_path / "none.png"), "--keep-from", "2"], "found nothing at"),
        (["--from", places["prior"] + "/config.yaml", "--keep-from", "2"], "expected a picture that decodes"),
        (["--set", "guidence=3"], "nearest known key is 'guidance'"),
        (["--set", "top_p=2"], "'top_p'"),
    ):
        assert cli.run(["generate", *models, *wrong]) == 2
        assert complaint in capsys.readouterr().err


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


def test_options_of_tokenize_decide_the_rows(built: Built, places: dict[str, str], capsys, tmp_path):
    common = ["tokenize", places["corpus"], str(tmp_path / "tokens"), "--tokenizer", places["tokenizer"]]
    views = ["--view", "start", "--view", "center_flip"]
    assert cli.run([*common, *views, "--length", "2", "--keep", "3", "--batch-size", "8", "--actors", "1"]) == 0
    store = TokenStore.open(str(tmp_path / "tokens"))
    assert (len(store), store.num_tokens, store.meta.batch_size) == (2 * 48, 3, 8)
    assert [store[row].view for row in range(4)] == ["start", "center_flip"] * 2
    assert set(store.lengths()) == {2}
    capsys.readouterr()
    for wrong in (["--length", "short"], ["--length", "mae:-1"], ["--length", "vmaf:0.1"], ["--view", "above"]):
        assert cli.run([*common, *wrong]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("error: ")


def draw(folder: Path, sizes: dict[str, tuple[int, int]]) -> str:
    """A folder with a picture of its own colour for each name."""
    for number, (name, size) in enumerate(sizes.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 90, 200)).save(path)
    return str(folder)


def test_options_of_shard_decide_what_the_shards_hold(capsys, tmp_path):
    source = draw(tmp_path / "pictures", {f"{i}.png": (80, 60) for i in range(30)})
    draw(tmp_path / "pictures", {"small.png": (300, 39), "long.png": (300, 50)})
    shutil.copy(tmp_path / "pictures/0.png", tmp_path / "pictures/copy.png")
    names = [path.name for path in (tmp_path / "pictures").iterdir()]
    (tmp_path / "labels.csv").write_text("key,label\n" + "".join(f"{name},{int(name < '2')}\n" for name in names))
    limits = ["--min-side", "40", "--max-aspect", "5", "--max-reject-fraction", "0.5", "--duplicates", "drop"]
    layout = ["--resize", "32", "--shard-bytes", "1000", "--seed", "3", "--near-duplicates"]
    out = str(tmp_path / "out")
    labels = ["--labels", str(tmp_path / "labels.csv")]
    assert cli.run(["shard", source, out, *limits, *layout, *labels, "--workers", "1"]) == 0
    corpus = Corpus.open(out)
    rejects = pq.read_table(f"{out}/rejects.parquet").to_pylist()
    assert {row["source"]: row["reason"] for row in rejects if row["reason"] != "duplicate"} == {
        "small.png": "too_small", "long.png": "extreme_aspect",
    }  # fmt: skip
    assert len(rejects) == 3 and corpus.num_samples == 30 and len(corpus.shards) > 2
    index = corpus.index()
    assert set(index["height"]) == {32} and corpus.classes == ["0", "1"]
    assert index["phash"].null_count() == 0 and (tmp_path / "out/near_duplicates.parquet").is_file()
    assert corpus.manifest["provenance"]["recipe"]["seed"] == 3

    held_out = str(tmp_path / "val")
    assert cli.run(["shard", source, held_out, *limits, "--split", "val", "--val-fraction", "0.4"]) == 0
    assert 4 <= Corpus.open(held_out).num_samples <= 20


def test_several_sources_have_names_and_weights(capsys, tmp_path):
    sources = [draw(tmp_path / part / "pictures", {f"{i}.png": (32, 32) for i in range(3)}) for part in "ab"]
    out = str(tmp_path / "out")
    named = ["--name", "one", "--name", "two", "--weight", "1", "--weight", "2.5"]
    assert cli.run(["shard", *sources, out, *named]) == 0
    corpus = Corpus.open(out)
    assert [(source["name"], source["weight"]) for source in corpus.manifest["sources"]] == [("one", 1.0), ("two", 2.5)]
    assert corpus.name == "one" and set(corpus.sample_weights()[:]) == {2 / 3.5, 5 / 3.5}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--name", "one"], "expected --name once for each SOURCE in their order, found 1 for 2"),
        (["--weight", "1", "--weight", "2", "--weight", "3"], "expected --weight once for each SOURCE"),
        (["--name", "a", "--name", "a"], "sources need different names"),
        (["--name", "a b", "--name", "c"], "'name': String should match pattern"),
        (["--name", "a", "--name", "b", "--weight", "1", "--weight", "-1"], "'sources.1.weight': Input should be"),
        (["--name", "a", "--name", "b", "--duplicates", "some"], "--duplicates: Input should be 'keep' or 'drop'"),
        (["--name", "a", "--name", "b", "--resize", "4"], "--resize: Input should be"),
        (["--name", "a", "--name", "b", "--val-fraction", "1"], "--val-fraction: Input should be less than 1"),
        (["--name", "a", "--name", "b", "--labels", "no.csv"], "expected no.csv beside the pictures"),
        (["--name", "a", "--name", "b", "--labels", "./no.csv"], "--labels: expected a UTF-8 CSV file"),
    ],
)
def test_wrong_options_of_shard_are_one_line(options: list[str], expected: str, capsys, tmp_path):
    sources = [draw(tmp_path / part / "pictures", {"1.png": (32, 32)}) for part in "ab"]
    assert cli.run(["shard", *sources, str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line


def test_training_by_hand_needs_no_dagster(built: Built, capsys, tmp_path):
    workspace = tmp_path / "copy"
    shutil.copytree(built.workspace, workspace, ignore=shutil.ignore_patterns("dagster"))
    settings = ["--profile", str(built.profile), "--workspace", str(workspace)]
    for part in ("vae", "tokenizer", "prior"):
        assert cli.run(["train", part, *settings]) == 0
        url = Path(capsys.readouterr().out.strip())
        assert url.parent == workspace / "checkpoints" / part and (url / "model.safetensors").is_file()
    assert not (workspace / "dagster").exists()
