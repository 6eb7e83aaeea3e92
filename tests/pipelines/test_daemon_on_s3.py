"""A workspace and its pictures in an object store: the daemon builds all of it by itself, with the digests of a local disk."""

import signal
from pathlib import Path

import fsspec
import pytest
from dagster_ui import DagsterUI
from flextok_process import END_S, wait_until
from shrunk_smoke import Built, shrunk_profile
from test_daemon import refresh_is_over

from flextok.data.scenes import ScenesConfig, draw_scene, scene_classes
from pipelines import cli
from pipelines.workspace import Workspace

pytestmark = pytest.mark.slow
SPLITS = {"train": 48, "val": 32}
EACH_MINUTE = "automation.refresh='* * * * *'"


def put_pictures(folder: str) -> None:
    """Scenes as files, each in the folder of its class."""
    config = ScenesConfig(train_samples=SPLITS["train"], val_samples=SPLITS["val"], image_px=32)
    for split, count in SPLITS.items():
        for index in range(count):
            scene = draw_scene(config, split, index)
            with fsspec.open(f"{folder}/{split}/{scene_classes()[scene.label]}/{index:03d}.png", "wb") as file:
                file.write(scene.png)


@pytest.mark.timeout(1500)
def test_the_daemon_builds_a_workspace_on_s3(
    s3_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where Dagster's own records of such a workspace lie
    profile = shrunk_profile(tmp_path / "smoke.yaml")
    put_pictures(f"{s3_folder}/pictures")
    put_pictures(f"{tmp_path}/pictures")
    away = Built(profile, f"{s3_folder}/w")
    sets = EACH_MINUTE, f"corpus.source={s3_folder}/pictures"
    ui = DagsterUI(*away.arguments(*sets), cwd=tmp_path)
    with Workspace(away.workspace).instance() as instance:
        wait_until(lambda: refresh_is_over(instance), within_s=1200)
    assert ui.command.end_by(signal.SIGTERM) <= END_S
    assert not ui.command.left(2 * END_S)
    made = away.states(capsys, *sets)
    assert {state["status"] for state in made.values()} == {"fresh"}, made

    here = Built(profile, tmp_path / "w")
    source = f"corpus.source={tmp_path}/pictures"
    assert cli.run(["refresh", *here.arguments(source)]) == 0
    expected = here.states(capsys, source)
    digests = {label: state["digest"] for label, state in made.items() if not label.startswith("corpus")}
    assert digests == {label: state["digest"] for label, state in expected.items() if label in digests}
    assert len(digests) == len(expected) - len(SPLITS)
