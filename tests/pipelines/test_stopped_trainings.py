"""A run in training ends within ten seconds of a signal, leaves no process behind, and is resumed."""

import re
import signal
from pathlib import Path

import pytest
from flextok_process import END_S, LONG, Command, steps_done, wait_until
from shrunk_smoke import Built

pytestmark = pytest.mark.slow
STAGES = {"vae": "latents", "tokenizer": "tokenizer", "prior": "prior"}


@pytest.fixture
def made(built: Built, tmp_path: Path) -> Built:
    """All results before a training, in a workspace of the test's own."""
    return built.copied(tmp_path / "w")


def start(made: Built, kind: str, *sets: str) -> Command:
    """A training by a worker of Ray, too long to end by itself."""
    stage = STAGES[kind]
    long = f"{stage}.train.steps={LONG}", "compute.train_workers=1", "compute.num_cpus=2"
    return Command("run", "--select", stage, *made.arguments(*long, *sets))


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


@pytest.mark.parametrize(
    ("kind", "number"), [("vae", signal.SIGTERM), ("tokenizer", signal.SIGHUP), ("prior", signal.SIGINT)]
)
def test_a_signal_ends_a_training_and_its_state_is_kept(made: Built, kind: str, number: signal.Signals) -> None:
    assert cut_off(start(made, kind), kind, str(made.workspace), number) > 0


def test_a_killed_run_leaves_nothing_running_and_the_next_resumes(made: Built) -> None:
    workspace = str(made.workspace)
    killed = start(made, "vae", "latents.train.checkpoint_every=1")
    killed.wait_for("train vae")
    wait_until(lambda: steps_done(workspace, "vae") > 10)
    killed.end_by(signal.SIGKILL)
    assert not killed.left(30)
    reached = steps_done(workspace, "vae")
    again = start(made, "vae", "latents.train.checkpoint_every=1")
    assert cut_off(again, "vae", workspace, signal.SIGTERM, reached) > reached
