"""Workspaces by any name: each works, or is refused in one line before anything is written."""

import json
import os
from pathlib import Path

import dagster as dg
import pytest

from flextok import storage
from pipelines import cli
from pipelines.workspace import LONGEST_HOME_BYTES, Workspace

SMALL = [
    "--select", "corpus,image_shards",
    "--set", "corpus.scenes.train_samples=8", "--set", "corpus.scenes.val_samples=4",
]  # fmt: skip


def run_and_look(workspace: str, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Build the shards, see them fresh, and check the files under the name that was given."""
    assert cli.run(["run", f"--workspace={workspace}", *SMALL]) == 0
    capsys.readouterr()
    assert cli.run(["status", "--json", f"--workspace={workspace}", *SMALL[2:]]) == 0
    document = json.loads(capsys.readouterr().out)
    shards = [item for item in document["assets"] if item["asset"] == "image_shards"]
    assert document["workspace"] == storage.absolute(workspace)
    assert [item["status"] for item in shards] == ["fresh", "fresh"]
    assert cli.run(["verify", split]) == 0
    assert cli.run(["lineage", split]) == 0


@pytest.mark.parametrize("name", ["100 % é 日本", "w#'\"\\$(x);&|", "w*[1]\nw::v"])
def test_a_folder_by_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_and_look(name, f"{name}/corpora/scenes/train", capsys)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["corpora", "dagster", "lineage"]


def test_dagster_reads_its_settings_whatever_the_name(tmp_path: Path):
    """It opens them through glob."""
    place = Workspace(f"{tmp_path}/w*[1]")
    with place.instance() as instance:
        assert not instance.telemetry_enabled
    with place.plain_dagster_home() as home, dg.DagsterInstance.from_config(str(home)) as instance:
        assert not instance.telemetry_enabled
        assert home.resolve() == place.dagster_home


@pytest.mark.parametrize("prefix", ["w%41 é#", "w?q=1&x", "w*[1]"])
def test_a_prefix_by_any_name(prefix: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_and_look(f"{bucket}/{prefix}", f"{bucket}/{prefix}/corpora/scenes/train", capsys)
    assert storage.list_names(bucket) == [prefix]
    assert storage.list_names(f"{bucket}/{prefix}") == ["corpora", "lineage"]
    storage.write_bytes(f"{bucket}/wA1/other", b"other")
    storage.remove(f"{bucket}/{prefix}")
    assert storage.list_names(bucket) == ["wA1"]


@pytest.mark.parametrize(
    ("workspace", "found"),
    [
        ("w%41", "'%41'"),
        ("below?q/w", "'?'"),
        (os.fsdecode(b"w\xff"), "UTF-8"),
        ("w" * 300, "too long"),
        ("/".join(["w" * 200] * 3), "at most 450 bytes"),
        ("link/w", "link"),
        (" ", "nothing"),
        ("s3://", "bucket"),
        ("s3://bucket/w\nx", r"'\n'"),
        ("s3://bucket/w::v", "'::'"),
        ("s3://bucket/w?versionId=1", "'?versionId='"),
        ("https://127.0.0.1/w", "written"),
        ("nostore://bucket/w", "nostore"),
    ],
)
@pytest.mark.parametrize("command", ["run", "status", "train"])
def test_what_cannot_be_is_refused_before_anything_is_written(
    command: str, workspace: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("link")
    job = ["tokenizer"] if command == "train" else []
    assert cli.run([command, *job, f"--workspace={workspace}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and found in line
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_store_whose_records_would_lie_in_a_folder_that_dagster_cannot_use(tmp_path: Path, monkeypatch, capsys):
    folder = tmp_path / "here%20"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert cli.run(["status", "--workspace=memory://w"]) == 2
    assert "'%20'" in capsys.readouterr().err and not list(folder.iterdir())


@pytest.mark.parametrize("name", ["%", "%%", "%s", "100%", "%(x)s", "%4"])
def test_a_percent_sign_alone_is_no_reason_to_refuse(name: str, tmp_path: Path):
    with Workspace(str(tmp_path / name)).instance() as instance:
        assert instance.get_run_records() == []
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "dagster" / "history" / "runs" / "index.db").is_file()


def test_the_longest_path_that_is_taken_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    room = LONGEST_HOME_BYTES - len(f"{tmp_path}/a//dagster")
    workspace = f"{tmp_path}/{'a' * (room // 2)}/{'b' * (room - room // 2 + 1)}"
    assert len(str(Workspace(workspace).dagster_home)) == LONGEST_HOME_BYTES
    run_and_look(workspace, f"{workspace}/corpora/scenes/train", capsys)
