"""The UI ends by a signal with all of its processes, those of the runs that it launched included."""

import json
import signal
import socket
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from flextok_process import END_S, IN_THE_BACKGROUND, LONG, SMALL, Command, steps_done, wait_until

pytestmark = pytest.mark.slow
ASSETS = "{ assetNodes { assetKey { path } repository { name location { name } } } }"
LAUNCH = """
mutation ($selector: JobOrPipelineSelector!) {
  launchPipelineExecution(executionParams: {selector: $selector, runConfigData: {}}) { __typename }
}
"""


def start_ui(workspace: str, sets: tuple[str, ...] = ()) -> tuple[Command, int]:
    """As a script starts it with `&`: SIGINT is ignored by it, and would be by all that it starts."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        command = Command("ui", "--workspace", workspace, "--port", str(port), sets=sets, program=IN_THE_BACKGROUND)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until(lambda: answers(port))
    return command, port


def answers(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def ask(port: int, query: str, **variables: Any) -> Any:
    """What the UI's own server answers to a GraphQL query."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


def launch(port: int, assets: list[str]) -> None:
    """What the button Materialize does."""
    nodes = ask(port, ASSETS)["assetNodes"]
    repository = nodes[0]["repository"]
    keys = [node["assetKey"] for node in nodes if node["assetKey"]["path"][-1] in assets]
    selector = {
        "repositoryName": repository["name"],
        "repositoryLocationName": repository["location"]["name"],
        "jobName": "__ASSET_JOB",
        "assetSelection": keys,
    }
    assert ask(port, LAUNCH, selector=selector)["launchPipelineExecution"]["__typename"] == "LaunchRunSuccess"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_ui_leaves_none_of_its_processes(tmp_path: Path, number: signal.Signals) -> None:
    command, _ = start_ui(str(tmp_path / "w"))
    assert len(command.left(0)) >= 4
    assert command.end_by(number) <= END_S
    assert command.process.returncode == (0 if number == signal.SIGTERM else -number)
    assert not command.left(2 * END_S)


@pytest.mark.alone  # it has seconds in which to write its state
def test_a_training_launched_from_the_ui_ends_with_it_and_keeps_its_state(tmp_path: Path) -> None:
    workspace = str(tmp_path / "w")
    arguments = ["run", "--select", "+image_shards", "--workspace", workspace]
    assert Command(*arguments, sets=tuple(SMALL)).finish() == 0
    command, port = start_ui(workspace, sets=(*SMALL, f"latents.train.steps={LONG}"))
    launch(port, ["latents"])
    wait_until(lambda: steps_done(workspace, "vae") > 0)
    assert command.end_by(signal.SIGTERM) <= END_S
    assert not command.left(2 * END_S)
    assert list(Path(workspace).glob("checkpoints/vae/.runs/*/step_*/state.json"))
