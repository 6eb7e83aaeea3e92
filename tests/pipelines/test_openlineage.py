"""Lineage out: what runs tell, whoever started them, and that it reaches a receiver now or later, without any delay."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from flextok_process import END_S, SMALL, Command
from json_receiver import receiving
from openlineage_facets import check_event
from ray_nodes import free_port
from shrunk_smoke import Built

from pipelines import cli
from pipelines.definitions import build_definitions
from pipelines.lineage import record, sender, telling
from pipelines.lineage.endings import lineage_sensor
from pipelines.recipe import load_recipe
from pipelines.workspace import Workspace

FEW = ["corpus.scenes.train_samples=8", "corpus.scenes.val_samples=4"]
SETS = [part for item in FEW for part in ("--set", item)]
END_WAIT_S = sender.END_WAIT_S
DELAY_S = END_WAIT_S + 4
"""What a receiver may delay a command by, on a busy machine."""

Event = dict[str, Any]


@pytest.fixture(autouse=True)
def not_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """OpenLineage's client finds no configuration, and what it puts into the environment goes again.

    Commands wait longer than usual for a receiver that answers, for tests on a busy machine.
    """
    clear()
    monkeypatch.setattr(sender, "END_WAIT_S", 60.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    clear()


def clear() -> None:
    for name in list(os.environ):
        if name.startswith("OPENLINEAGE"):
            del os.environ[name]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after a run of `corpus,image_shards`, with nothing configured."""
    clear()
    workspace = tmp_path_factory.mktemp("sharded") / "w"
    assert cli.run(["run", "--select", "corpus,image_shards", "--workspace", str(workspace), *SETS]) == 0
    return workspace


@pytest.fixture
def workspace(sharded: Path, tmp_path: Path) -> Path:
    """Its copy."""
    return shutil.copytree(sharded, tmp_path / "w")


def list_again(workspace: Path, *arguments: str) -> int:
    """The shortest run there is: two events."""
    wanted = ["run", "--select", "corpus", "--partition", "scenes/val", "--workspace", str(workspace)]
    return cli.run([*wanted, *SETS, *arguments])


def events(workspace: Path) -> list[Event]:
    return [json.loads(line) for line in (workspace / "lineage" / "events.jsonl").read_text().splitlines()]


def kinds(told: list[Event]) -> list[str]:
    return [event["eventType"] for event in told]


def essence(told: list[Event]) -> list[tuple[str, str, str]]:
    return [(event["run"]["runId"], event["eventType"], event["eventTime"]) for event in told]


def last_of(told: list[Event], job: str) -> Event:
    return [event for event in told if event["job"]["name"] == f"smoke/{job}"][-1]


def test_without_configuration_all_is_recorded_and_nothing_sent(sharded: Path):
    told = events(sharded)
    assert kinds(told) == ["START", "COMPLETE"] * 4
    assert [path.name for path in (sharded / "lineage").iterdir()] == ["events.jsonl"]
    for start, complete in zip(told[::2], told[1::2], strict=True):
        assert start["run"]["runId"] == complete["run"]["runId"]
        assert start["eventTime"] <= complete["eventTime"] and start["outputs"] == []


def test_without_configuration_nothing_is_printed(workspace: Path, capfd: pytest.CaptureFixture[str]):
    assert list_again(workspace) == 0
    shown = capfd.readouterr()
    assert "lineage" not in (shown.out + shown.err).lower()
    assert not (workspace / "lineage" / "sent.json").exists()


def test_a_receiver_is_sent_every_event_once_and_in_order(workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    with receiving() as receiver:
        monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
        assert list_again(workspace) == 0
        assert list_again(workspace) == 0
    told = events(workspace)
    assert kinds(receiver.events) == ["START", "COMPLETE"] * 6
    assert essence(receiver.events) == essence(told)
    assert json.loads((workspace / "lineage" / "sent.json").read_text()) == {
        "bytes": (workspace / "lineage" / "events.jsonl").stat().st_size
    }
    assert "lineage" not in capfd.readouterr().err
    for event in receiver.events:
        tags = event["run"]["facets"].pop("tags")
        assert {tag["key"] for tag in tags["tags"]} >= {"dagster_run_id", "openlineage_client_version"}
        assert event["job"]["facets"] == {}  # nothing of the repository in which the sender stands
    for event in told:
        check_event(event)


def test_image_shards_tell_columns_counts_and_checks(sharded: Path):
    complete = last_of(events(sharded), "image_shards")
    (output,) = complete["outputs"]
    assert output["name"] == "smoke/image_shards/scenes/val"
    columns = {column["name"]: column["type"] for column in output["facets"]["schema"]["fields"]}
    assert columns == {"key": "string", "png": "binary", "cls": "int32", "txt": "string", "json": "json"}
    (tar,) = (sharded / "corpora" / "scenes" / "val" / "shards").glob("*.tar")
    statistics = output["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["size"], statistics["fileCount"]) == (4, tar.stat().st_size, 1)
    tests = {test["name"]: test["status"] for test in complete["run"]["facets"]["test"]["tests"]}
    assert tests == {"shards_match_manifest": "pass", "few_rejects": "pass", "classes_for_prior": "pass"}
    assert [item["name"] for item in complete["inputs"]] == ["smoke/corpus/scenes/val"]


@pytest.mark.slow
def test_every_stage_tells_what_it_read_and_made(built: Built):
    told = events(built.workspace)
    for event in told:
        check_event(event)
    (tokens,) = [item for item in last_of(told, "prior")["inputs"] if item["name"].endswith("/val")]
    (made,) = last_of(told, "token_shards")["outputs"]
    assert made["name"] == tokens["name"] == "smoke/token_shards/scenes/val"
    columns = {column["name"]: column["type"] for column in made["facets"]["schema"]["fields"]}
    assert columns["tokens"].startswith("fixed_size_list<") and columns["label"] == "int32"
    counts = tokens["inputFacets"]["dataQualityMetrics"]
    assert counts["rowCount"] == made["outputFacets"]["outputStatistics"]["rowCount"] == 48
    assert counts["bytes"] == made["outputFacets"]["outputStatistics"]["size"] > 0
    checks = {check["assertion"]: check for check in tokens["inputFacets"]["dataQualityAssertions"]["assertions"]}
    assert checks.keys() == {"rows_match_images", "codebook_in_use"}
    assert (checks["rows_match_images"]["success"], checks["rows_match_images"]["severity"]) == (True, "error")
    (samples,) = last_of(told, "samples")["outputs"]
    assert samples["facets"]["dataQualityMetrics"]["rowCount"] == 32 and samples["facets"]["schema"]["fields"]


def test_a_receiver_that_is_down_delays_nothing_and_loses_nothing(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    seconds = timed(workspace)
    port = free_port("127.0.0.1")
    monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{port}")
    assert timed(workspace) < seconds + DELAY_S
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "lineage" in line]
    assert line.startswith("warning: ") and line.endswith("are sent later (ConnectionError)")
    assert kinds(events(workspace)) == ["START", "COMPLETE"] * 6
    with receiving(port) as receiver:
        assert list_again(workspace) == 0
        assert essence(receiver.events) == essence(events(workspace))
        assert len(receiver.events) == 14


def test_a_receiver_that_hangs_delays_a_command_by_seconds_at_most(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sender, "END_WAIT_S", END_WAIT_S)
    seconds = timed(workspace)
    with receiving(hangs=True) as receiver:
        monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
        assert timed(workspace) < seconds + DELAY_S
        assert receiver.events == []
        receiver.hangs = False
        receiver.ended.set()
        assert list_again(workspace) == 0
        assert_soon(lambda: essence(receiver.events) == essence(events(workspace)))


def timed(workspace: Path) -> float:
    started = time.monotonic()
    assert list_again(workspace) == 0
    return time.monotonic() - started


def assert_soon(holds) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_secrets_of_the_receivers_url_are_not_shown(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    with receiving(status=401) as receiver:
        monkeypatch.setenv("OPENLINEAGE_URL", receiver.url.replace("http://", "http://me:hidden@"))
        monkeypatch.setenv("OPENLINEAGE_ENDPOINT", "api/v1/lineage?key=hidden")
        monkeypatch.setenv("OPENLINEAGE_API_KEY", "hidden")
        assert list_again(workspace) == 0
    shown = capsys.readouterr().err
    assert "are sent later (HTTP 401" in shown and "hidden" not in shown
    assert "hidden" not in (workspace / "lineage" / "events.jsonl").read_text()


@pytest.mark.parametrize("how", ["OPENLINEAGE_CONFIG", "openlineage.yml", "variables"])
def test_other_configurations_of_the_client(how: str, workspace: Path, tmp_path: Path, monkeypatch):
    sent = tmp_path / "sent.jsonl"
    transport = {"transport": {"type": "file", "log_file_path": str(sent), "append": True}}
    if how == "OPENLINEAGE_CONFIG":
        (tmp_path / "mine.yml").write_text(json.dumps(transport))
        monkeypatch.setenv("OPENLINEAGE_CONFIG", str(tmp_path / "mine.yml"))
    elif how == "openlineage.yml":
        (tmp_path / "openlineage.yml").write_text(json.dumps(transport))
    else:
        for name, value in transport["transport"].items():
            monkeypatch.setenv(
                f"OPENLINEAGE__TRANSPORT__{name.upper()}", str(value).lower() if value is True else value
            )
    assert list_again(workspace) == 0
    assert essence([json.loads(line) for line in sent.read_text().splitlines()]) == essence(events(workspace))


def test_what_is_disabled_is_sent_once_it_no_longer_is(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    with receiving() as receiver:
        monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
        monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
        assert list_again(workspace) == 0
        assert receiver.events == []
        monkeypatch.delenv("OPENLINEAGE_DISABLED")
        assert list_again(workspace) == 0
        assert len(receiver.events) == 12


def test_a_stage_that_fails_tells_why(workspace: Path, tmp_path: Path):
    assert list_again(workspace, "--set", f"corpus.source={tmp_path / 'nowhere'}") == 2
    start, fail = events(workspace)[-2:]
    assert kinds([start, fail]) == ["START", "FAIL"] and start["run"]["runId"] == fail["run"]["runId"]
    assert str(tmp_path / "nowhere") in fail["run"]["facets"]["errorMessage"]["message"]
    assert fail["outputs"] == []
    check_event(fail)


def test_a_check_that_does_not_hold_is_a_failure_with_its_result(tmp_path: Path):
    with dg.DagsterInstance.ephemeral() as instance:
        part = (dg.AssetKey(["smoke", "corpus"]), "scenes/train")
        with telling.telling(instance, Workspace(str(tmp_path)), ID, part, list) as told:
            check = dg.AssetCheckResult(check_name="sound", passed=False, description="not sound")
            told.result = dg.MaterializeResult(data_version=dg.DataVersion("1"), check_results=[check])
    fail = events(tmp_path)[-1]
    assert fail["eventType"] == "FAIL" and fail["run"]["facets"]["test"]["tests"][0]["status"] == "fail"
    assert fail["run"]["facets"]["errorMessage"]["message"] == "a check did not hold: sound: not sound"
    assert fail["outputs"][0]["facets"]["version"]["datasetVersion"] == "1"
    check_event(fail)


def test_a_long_run_says_that_it_is_running(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(telling, "RUNNING_EVERY_S", 0.02)
    before = len(events(workspace))
    wanted = ["run", "--select", "image_shards", "--partition", "scenes/val", "--workspace", str(workspace)]
    assert cli.run([*wanted, *SETS, "--set", "corpus.shard_samples=2"]) == 0
    told = events(workspace)[before:]
    assert kinds(told)[0] == "START" and kinds(told)[-1] == "COMPLETE"
    assert len(told) > 2 and set(kinds(told)[1:-1]) == {"RUNNING"}
    assert len({event["run"]["runId"] for event in told}) == 1
    for event in told:
        check_event(event)


@pytest.mark.slow
def test_a_run_that_was_killed_has_failed_for_the_next_command(tmp_path: Path):
    workspace = tmp_path / "w"
    command = Command(
        "run", "--select", "corpus,image_shards", "--workspace", str(workspace),
        sets=(*SMALL, "corpus.scenes.train_samples=50000"),
    )  # fmt: skip
    command.wait_for("sharding: ")
    command.end_by(signal.SIGKILL)
    assert kinds(events(workspace))[-1] == "START"
    start = events(workspace)[-1]
    assert list_again(workspace) == 0
    assert list_again(workspace) == 0
    (fail,) = [event for event in events(workspace) if event["eventType"] == "FAIL"]
    assert fail["run"]["runId"] == start["run"]["runId"] and fail["inputs"] == start["inputs"]
    assert fail["run"]["facets"]["errorMessage"]["message"] == "its process ended before it did"
    check_event(fail)
    assert not command.left()


@pytest.mark.slow
def test_an_interrupted_run_tells_so_and_waits_for_no_receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    workspace = tmp_path / "w"
    with receiving(hangs=True) as receiver:
        monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
        command = Command(
            "run", "--select", "corpus,image_shards", "--workspace", str(workspace),
            sets=(*SMALL, "corpus.scenes.train_samples=50000"),
        )  # fmt: skip
        command.wait_for("sharding: ")
        assert command.end_by(signal.SIGTERM) <= END_S
    assert command.told[-1].startswith("error: interrupted"), command.told
    last = events(workspace)[-1]
    assert last["eventType"] == "FAIL" and last["run"]["facets"]["errorMessage"]["message"] == "interrupted"


ID = "3c61a59a-3ab9-4756-8dfa-c40c197f911f"


@contextlib.contextmanager
def daemon(workspace: Path) -> Iterator[tuple[dg.DagsterInstance, dg.JobDefinition]]:
    """What Dagster's processes have: the definitions and the workspace's instance."""
    job = build_definitions([load_recipe("smoke", FEW)], str(workspace)).resolve_implicit_global_asset_job_def()
    with Workspace(str(workspace)).instance() as instance:
        yield instance, job


def look(instance: dg.DagsterInstance, workspace: Path, cursor: str | None = None) -> str | None:
    """A tick of the sensor; its cursor afterwards."""
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    assert isinstance(lineage_sensor(str(workspace))(context), dg.SkipReason)
    return context.cursor


def test_a_run_of_the_daemon_tells_the_same_and_its_sensor_sends_it(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    before = events(workspace)
    with daemon(workspace) as (instance, job):
        key = dg.AssetKey(["smoke", "corpus"])
        assert job.execute_in_process(instance=instance, asset_selection=[key], partition_key="scenes/train").success
        told = events(workspace)[len(before) :]
        assert kinds(told) == ["START", "COMPLETE"]
        assert (
            told[1]["outputs"] == before[1]["outputs"] or told[1]["outputs"][0]["name"] == "smoke/corpus/scenes/train"
        )
        with receiving() as receiver:
            monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
            cursor = look(instance, workspace)
            assert_soon(lambda: essence(receiver.events) == essence(events(workspace)))
            assert look(instance, workspace, cursor) == cursor
            assert len(receiver.events) == 10


@pytest.mark.parametrize("end", ["failed", "canceled"])
def test_a_run_of_the_daemon_that_was_killed_has_failed(end: str, workspace: Path):
    before = len(events(workspace))
    with daemon(workspace) as (instance, job):
        run = instance.create_run_for_job(job)
        part = (dg.AssetKey(["smoke", "corpus"]), "scenes/train")
        told = telling.telling(instance, Workspace(str(workspace)), run.run_id, part, list)
        told.__enter__()  # and never ends
        assert look(instance, workspace) is None  # it is at work
        getattr(instance, f"report_run_{end}")(run)
        cursor = look(instance, workspace, look(instance, workspace))
        assert cursor == str(record.size(Workspace(str(workspace))))
    assert kinds(events(workspace)[before:]) == ["START", "FAIL"]


def test_an_event_goes_behind_a_line_that_was_cut_short(tmp_path: Path):
    place = Workspace(str(tmp_path))
    record.append(place, ['{"a": 1}'])
    path = tmp_path / "lineage" / "events.jsonl"
    with path.open("a") as file:
        file.write('{"b": ')
    record.append(place, ['{"c": 3}'])
    found = list(record.events_after(place, 0))
    assert [event for _, event in found] == [{"a": 1}, {"c": 3}]
    assert found[-1][0] == path.stat().st_size == record.size(place)
    assert [event for _, event in record.events_after(place, found[0][0])] == [{"c": 3}]


def test_writers_of_one_object_lose_nothing(s3_folder: str):
    place = Workspace(s3_folder)

    def write(name: str) -> None:
        for number in range(4):
            record.append(place, [json.dumps([name, number])])

    writers = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(tuple(event) for _, event in record.events_after(place, 0)) == [
        (n, i) for n in "ab" for i in range(4)
    ]


def test_lineage_that_cannot_be_written_is_a_warning(workspace: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(workspace / "lineage")
    (workspace / "lineage").write_text("a file where the folder should be")
    assert list_again(workspace) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warnings and all("lineage" in line for line in warnings) and len(warnings) <= 2
