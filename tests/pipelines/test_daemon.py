"""The schedule of a profile under Dagster's own daemon: it builds what is out of date, and nothing else, also at a time that
came while no daemon was there.

What it does reaches a receiver of lineage, with all that the workspace has told before.
"""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_ui import DagsterUI
from flextok_process import END_S, wait_until
from json_receiver import receiving
from shrunk_smoke import Built

from pipelines.automation import PROFILE_TAG
from pipelines.execute import open_executor
from pipelines.recipe import load_recipe
from pipelines.watching import problems
from pipelines.workspace import Workspace

pytestmark = pytest.mark.slow
EACH_NIGHT = "automation.refresh='0 3 * * *'"
DAY_S = 86400


def test_a_report_that_is_gone_comes_back_by_itself(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    made = built.copied(tmp_path / "w [1]")
    (page,) = made.workspace.glob("evaluation/*/report/index.html")
    shutil.rmtree(page.parents[1])
    with receiving() as receiver:
        monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
        with Workspace(str(made.workspace)).instance() as instance:
            daemon = DagsterUI(*made.arguments(EACH_NIGHT)).command
            wait_until(lambda: bool(states(instance, "smoke_refresh")))
            assert daemon.end_by(signal.SIGTERM) <= END_S
            assert not instance.get_runs(dg.RunsFilter(tags={PROFILE_TAG: "smoke"}))
            look_back(instance, "smoke_refresh", 3 * DAY_S)
            daemon = DagsterUI(*made.arguments(EACH_NIGHT)).command
            refreshes = dg.RunsFilter(tags={PROFILE_TAG: "smoke"}, statuses=[dg.DagsterRunStatus.SUCCESS])
            wait_until(lambda: bool(instance.get_runs(refreshes)))
            (run,) = instance.get_runs(dg.RunsFilter(tags={PROFILE_TAG: "smoke"}))
            wait_until(lambda: refresh_is_over(instance))
            (state,) = states(instance, "smoke_refresh")
            (tick,) = instance.get_ticks(state.instigator_origin_id, state.selector_id)
            assert daemon.end_by(signal.SIGTERM) <= END_S
            assert not daemon.left(2 * END_S)
            look_back(instance, "smoke_refresh", -DAY_S)
            with open_executor(load_recipe(str(made.profile)), str(made.workspace)) as executor:
                told = problems(instance, executor.graph, {}, time.time()).values()
            assert any(line.startswith("smoke_refresh: the clock has jumped back from ") for line in told)
    assert {key.path[-1] for key in run.asset_selection or ()} == {"report"}
    assert run.tags["flextok/why"].startswith("its files are gone from ")
    assert 0 <= time.time() - tick.timestamp < DAY_S, "of three nights that were missed the last is made up"
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


def states(instance: dg.DagsterInstance, name: str) -> list[Any]:
    """Of a schedule or a sensor, once the daemon has seen it."""
    return [state for state in instance.all_instigator_state() if state.instigator_name == name]


def look_back(instance: dg.DagsterInstance, name: str, seconds: float) -> None:
    """Have it that the daemon saw a schedule so long ago, and not since; less than none: so far ahead."""
    (state,) = states(instance, name)
    then = time.time() - seconds
    data = state.instigator_data._replace(start_timestamp=then, last_iteration_timestamp=then)
    instance.update_instigator_state(state.with_data(data))


def refresh_is_over(instance: dg.DagsterInstance) -> bool:
    """Whether the sensor has found nothing more to do."""
    return any(getattr(state.instigator_data, "cursor", None) for state in states(instance, "smoke_go_on_with_refresh"))
