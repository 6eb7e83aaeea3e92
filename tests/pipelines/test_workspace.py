"""A workspace on an object store: artifacts and events there, Dagster's records here."""

import json
import logging
import shutil
from pathlib import Path

import dagster as dg
import pytest
from shrunk_smoke import Built, shrunk_profile

from flextok import storage
from flextok.runtime import log
from pipelines import cli
from pipelines.execute import QUIET_LOGS
from pipelines.workspace import Workspace, only_daemon


def test_paths_are_relative_to_the_root_so_that_it_may_move():
    workspace = Workspace("/some/where")
    for url in (workspace.corpus("c", "train"), workspace.tokens("c", "val", "d"), workspace.checkpoints("vae")):
        assert workspace.resolve(workspace.relative(url)) == url
        assert Workspace("/else").resolve(workspace.relative(url)).startswith("/else/")
    assert workspace.relative("/some/where-else/x") == "/some/where-else/x"


def test_the_dagster_home_is_always_local_and_one_for_each_workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    homes = {Workspace(url).dagster_home for url in ("s3://a/b", "s3://a/c", "s3://a/b/")}
    assert len(homes) == 2 and all(home.parent == tmp_path / "workspace" / "dagster" for home in homes)
    assert Workspace(str(tmp_path / "w")).dagster_home == tmp_path / "w" / "dagster"


def test_settings_of_dagster_are_written_once(tmp_path):
    workspace = Workspace(str(tmp_path))
    settings = workspace.prepare_dagster_home() / "dagster.yaml"
    assert "enabled: false" in settings.read_text()
    settings.write_text("telemetry: {enabled: false}\n")
    workspace.prepare_dagster_home()
    assert settings.read_text() == "telemetry: {enabled: false}\n"


def test_what_the_library_logs_is_kept_with_the_run_and_shown_once(tmp_path, capsys):
    @dg.asset
    def logs() -> None:
        logging.getLogger("flextok.somewhere").info("a notice")
        logging.getLogger("flextok.somewhere").warning("odd")

    log.setup()
    with Workspace(str(tmp_path)).instance() as instance:
        job = dg.Definitions(assets=[logs]).resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(instance=instance, run_config=QUIET_LOGS)
        kept = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert "a notice" in kept and "odd" in kept
    assert [line for line in capsys.readouterr().err.splitlines() if "notice" in line or "odd" in line] == [
        "a notice", "warning: odd",
    ]  # fmt: skip


@pytest.mark.slow
def test_stages_on_an_object_store(bucket: str, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    profile = shrunk_profile(tmp_path / "smoke.yaml")
    arguments = ["--profile", str(profile), "--workspace", bucket]
    assert cli.run(["run", "--select", "+tokenizer", *arguments]) == 0
    assert storage.exists(f"{bucket}/corpora/scenes/val/manifest.json")
    assert [path.name for path in (tmp_path / "workspace").iterdir()] == ["dagster"]
    lines = storage.read_bytes(f"{bucket}/lineage/events.jsonl").decode().splitlines()
    assert [json.loads(line)["eventType"] for line in lines] == ["START", "COMPLETE"] * 6
    capsys.readouterr()
    assert cli.run(["status", "--json", *arguments]) == 0
    assets = json.loads(capsys.readouterr().out)["assets"]
    states = {item["asset"]: item for item in assets}
    assert {name for name, item in states.items() if item["status"] == "fresh"} == {
        "corpus", "image_shards", "latents", "tokenizer",
    }  # fmt: skip
    assert cli.run(["lineage", "--json", states["tokenizer"]["uri"]]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["found"] and all(item["found"] for item in tree["inputs"])


@pytest.mark.slow
def test_a_moved_workspace_is_as_fresh_as_before(built: Built, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(built.workspace, moved)
    capsys.readouterr()
    assert cli.run(["refresh", "--profile", str(built.profile), "--workspace", str(moved)]) == 0
    shown = capsys.readouterr()
    assert "nothing to do" in shown.err
    assert Path(shown.out.strip()).is_relative_to(moved)


def test_a_workspace_has_one_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Workspace(str(tmp_path)).prepare_dagster_home()
    with only_daemon(home):
        assert cli.run(["ui", "--workspace", str(tmp_path)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1, told
    assert told[0].startswith(f"error: expected no other `flextok ui` or daemon for {home}, found one"), told
