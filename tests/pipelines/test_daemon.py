"""The schedule of a profile under Dagster's own daemon: each minute it builds what is out of date, and nothing else.

What it does reaches a receiver of lineage, with all that the workspace has told before.
"""

import json
import shutil
import signal
from pathlib import Path

import dagster as dg
import pytest
from flextok_process import END_S, IN_THE_BACKGROUND, Command, wait_until
from json_receiver import receiving
from ray_nodes import free_port
from shrunk_smoke import Built

from pipelines.automation import PROFILE_TAG
from pipelines.workspace import Workspace

pytestmark = pytest.mark.slow
EACH_MINUTE = "automation.refresh='* * * * *'"


def test_a_report_that_is_gone_comes_back_by_itself(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    made = built.copied(tmp_path / "w [1]")
    (page,) = made.workspace.glob("evaluation/*/report/index.html")
    shutil.rmtree(page.parents[1])
    with receiving() as receiver:
        monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
        daemon = Command(
            "ui", *made.arguments(EACH_MINUTE), "--port", str(free_port("127.0.0.1")), program=IN_THE_BACKGROUND
        )
        with Workspace(str(made.workspace)).instance() as instance:
            refreshes = dg.RunsFilter(tags={PROFILE_TAG: "smoke"}, statuses=[dg.DagsterRunStatus.SUCCESS])
            wait_until(lambda: bool(instance.get_runs(refreshes)))
            (run,) = instance.get_runs(dg.RunsFilter(tags={PROFILE_TAG: "smoke"}))
            wait_until(lambda: refresh_is_over(instance))
        assert daemon.end_by(signal.SIGTERM) <= END_S
        assert not daemon.left(2 * END_S)
    assert {key.path[-1] for key in run.asset_selection or ()} == {"report"}
    assert run.tags["flextok/why"].startswith("its files are gone from ")
    assert page.is_file()
    assert {state["status"] for state in made.states(capsys).values()} == {"fresh"}
    told = [json.loads(line) for line in (made.workspace / "lineage" / "events.jsonl").read_text().splitlines()]
    assert [(event["eventType"], event["job"]["name"]) for event in told[-2:]] == [
        ("START", "smoke/report"), ("COMPLETE", "smoke/report"),
    ]  # fmt: skip
    # An event comes twice where the process of a run ended before it could write down that it was sent.
    assert list(dict.fromkeys(event["eventTime"] for event in receiver.events)) == [
        event["eventTime"] for event in told
    ]


def refresh_is_over(instance: dg.DagsterInstance) -> bool:
    """Whether the sensor has found nothing more to do."""
    (state,) = [
        state for state in instance.all_instigator_state() if state.instigator_name == "smoke_go_on_with_refresh"
    ]
    return bool(getattr(state.instigator_data, "cursor", None))
