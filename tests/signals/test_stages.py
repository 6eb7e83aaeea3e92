"""A run ends within ten seconds of a signal, in whatever stage it is, leaves no process behind, and is resumed."""

import re
import signal
from pathlib import Path

import pytest
from flextok_process import END_S, LONG, SMALL, Command, steps_done, wait_until

pytestmark = pytest.mark.slow


def cut_off(command: Command, kind: str, workspace: str, number: signal.Signals, after: int = 0) -> int:
    """End a training in the middle, more than `after` steps in; the step after which it says that it resumes."""
    command.wait_for(f"train {kind}")
    wait_until(lambda: steps_done(workspace, kind) > after)
    assert command.end_by(number) <= END_S
    assert command.process.returncode == 1
    assert command.told[-1].startswith("error: interrupted; "), command.told
    resumed = re.search(rf"resumes the training of the {kind} after step ([\d,]+) of", command.told[-1])
    assert resumed is not None, command.told[-1]
    assert not command.left()
    return int(resumed[1].replace(",", ""))


def test_trainings_end_by_each_signal_and_their_states_are_kept(tmp_path: Path) -> None:
    """One workspace, brought stage by stage to its end, each stage first cut off in the middle."""
    workspace = str(tmp_path / "w")
    trainings = [
        ("vae", signal.SIGTERM, ["run", "--select", "+latents"], f"latents.train.steps={LONG}"),
        ("tokenizer", signal.SIGHUP, ["run", "--select", "tokenizer"], f"tokenizer.train.steps={LONG}"),
        ("prior", signal.SIGINT, ["run", "--select", "token_shards,prior"], f"prior.train.steps={LONG}"),
    ]
    for kind, number, arguments, long in trainings:
        arguments = [*arguments, "--workspace", workspace]
        assert cut_off(Command(*arguments, sets=(*SMALL, long)), kind, workspace, number) > 0
        if kind != "prior":
            assert Command(*arguments, sets=(*SMALL, "compute.train_workers=0")).finish() == 0


def test_a_killed_run_leaves_nothing_running_and_the_next_resumes(tmp_path: Path) -> None:
    workspace = str(tmp_path / "w")
    arguments = ["run", "--select", "+latents", "--workspace", workspace]
    sets = (*SMALL, f"latents.train.steps={LONG}", "latents.train.checkpoint_every=1")
    killed = Command(*arguments, sets=sets)
    killed.wait_for("train vae")
    wait_until(lambda: steps_done(workspace, "vae") > 10)
    killed.end_by(signal.SIGKILL)
    assert not killed.left(30)
    reached = steps_done(workspace, "vae")
    again = Command(*arguments, sets=sets)
    assert cut_off(again, "vae", workspace, signal.SIGTERM, reached) > reached


def test_sharding_in_two_processes_ends_by_a_signal(tmp_path: Path) -> None:
    command = Command(
        "run", "--select", "+image_shards", "--workspace", str(tmp_path / "w"),
        sets=(*SMALL, "corpus.scenes.train_samples=1000000"),
    )  # fmt: skip
    command.wait_for("sharding: ")
    assert command.end_by(signal.SIGTERM) <= END_S
    assert command.told[-1].startswith("error: interrupted"), command.told
    assert not command.left()
