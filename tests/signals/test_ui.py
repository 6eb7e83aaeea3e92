"""The UI ends by a signal with all of its processes, those of the runs that it launched included."""

import signal
from pathlib import Path

import pytest
from dagster_ui import DagsterUI
from flextok_process import END_S, LONG, SMALL, Command, steps_done, wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_ui_leaves_none_of_its_processes(tmp_path: Path, number: signal.Signals) -> None:
    command = DagsterUI("--workspace", str(tmp_path / "w")).command
    assert len(command.left(0)) >= 4
    assert command.end_by(number) <= END_S
    assert command.process.returncode == (0 if number == signal.SIGTERM else -number)
    assert not command.left(2 * END_S)


@pytest.mark.alone  # it has seconds in which to write its state
def test_a_training_launched_from_the_ui_ends_with_it_and_keeps_its_state(tmp_path: Path) -> None:
    workspace = str(tmp_path / "w")
    arguments = ["run", "--select", "+image_shards", "--workspace", workspace]
    assert Command(*arguments, sets=tuple(SMALL)).finish() == 0
    ui = DagsterUI("--workspace", workspace, sets=(*SMALL, f"latents.train.steps={LONG}"))
    ui.launch(["latents"])
    wait_until(lambda: steps_done(workspace, "vae") > 0)
    assert ui.command.end_by(signal.SIGTERM) <= END_S
    assert not ui.command.left(2 * END_S)
    assert list(Path(workspace).glob("checkpoints/vae/.runs/*/step_*/state.json"))
