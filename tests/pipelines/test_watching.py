"""People are told of what is wrong, once, over a real receiver, which may be away."""

import datetime
import time
from collections.abc import Iterator

import dagster as dg
import pytest
from asset_chain import Chain
from json_receiver import Receiver, receiving

from flextok.errors import FlextokError, UsageError
from pipelines import notify
from pipelines.definitions import build_definitions
from pipelines.recipe import load_recipe
from pipelines.watching import problems, watching

SECRET = "s3cr3t"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as found:
        monkeypatch.setenv(notify.ADDRESSES, found.url.replace("http://", f"json://user:{SECRET}@") + "/")
        yield found


class Watch:
    """The sensor of a chain, with its cursor."""

    def __init__(self, chain: Chain, **freshness: str):
        self.sensor = watching("chain", chain.executor().graph, freshness)
        self.instance = chain.instance
        self.cursor: str | None = None

    def look(self) -> str:
        """One tick; what it says."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        found = self.sensor.evaluate_tick(context)
        self.cursor = found.cursor
        return found.skip_message or ""


def found(chain: Chain, **freshness: str) -> list[str]:
    return list(problems(chain.instance, chain.executor().graph, freshness, time.time()).values())


def test_nothing_is_wrong_at_first(tmp_path) -> None:
    chain = Chain(tmp_path)
    assert found(chain, report="1d") == []
    chain.refresh()
    assert found(chain, report="1d") == []


def test_what_is_wrong(tmp_path) -> None:
    chain = Chain(tmp_path, broken={"model"}, unsound={"shards[c/val]"})
    for _ in range(2):
        with pytest.raises(FlextokError):
            chain.refresh()
        chain.unsound.clear()
    lines = found(chain)
    assert sum(": out of luck" in line and line.startswith("model: run ") for line in lines) == 1, lines
    assert not [line for line in lines if "does not hold" in line]  # it was made again and holds
    chain.code["shards"], chain.unsound = "2", {"shards[c/val]"}
    with pytest.raises(FlextokError):
        chain.refresh()
    assert "shards[c/val]: sound does not hold: not sound" in found(chain)


def test_a_run_that_is_tried_again_is_no_news(tmp_path) -> None:
    chain = Chain(tmp_path, broken={"source[c/train]"})
    with pytest.raises(FlextokError):
        chain.refresh()
    (run,) = chain.instance.get_runs()
    assert len(found(chain)) == 1
    chain.instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    assert found(chain) == []


def test_old_results(tmp_path) -> None:
    chain = Chain(tmp_path)
    chain.refresh()
    later = time.time() + datetime.timedelta(days=3).total_seconds()
    graph = chain.executor().graph
    told = problems(chain.instance, graph, {"report": "2d", "tokens": "7d"}, later)
    (line,) = told.values()
    assert line.startswith("report: the newest result is of ") and line.endswith(" UTC, older than 2d")
    assert len(problems(chain.instance, graph, {"tokens": "2d"}, later)) == 2


def test_people_are_told_once(tmp_path, receiver: Receiver) -> None:
    chain = Chain(tmp_path, broken={"model"})
    watch = Watch(chain)
    assert watch.look() == "0 of 0 problems are new"
    with pytest.raises(FlextokError):
        chain.refresh()
    receiver.status = 503
    assert "could not send" in watch.look() and SECRET not in watch.look()
    receiver.status = 200
    watch.look()
    assert watch.look() == "0 of 1 problems are new"
    (message,) = receiver.events
    assert message["title"] == "flextok chain: 1 new problem" and "model: run " in message["message"]


def test_nobody_is_told_without_addresses(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(notify.ADDRESSES, raising=False)
    assert "is not set" in Watch(Chain(tmp_path)).look()


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(notify.ADDRESSES, f"json://127.0.0.1:1/ nothing://{SECRET}")
    with pytest.raises(UsageError, match="another word in place 2 of 2") as caught:
        notify.notify("title", ["line"])
    assert SECRET not in str(caught.value) + caplog.text


def test_freshness_of_a_stage_that_there_is_not(tmp_path) -> None:
    recipe = load_recipe("smoke", ["automation.freshness={reprt: 7d}"])
    with pytest.raises(UsageError, match="found 'reprt'; did you mean 'report'"):
        build_definitions([recipe], str(tmp_path))
    with pytest.raises(UsageError, match="expected a duration"):
        load_recipe("smoke", ["automation.freshness={report: soon}"])


def test_dagster_shows_it_too(tmp_path) -> None:
    definitions = build_definitions([load_recipe("smoke", ["automation.freshness={report: 7d}"])], str(tmp_path))
    policies = {spec.key.path[-1]: spec.freshness_policy for spec in definitions.resolve_all_asset_specs()}
    assert [name for name, policy in policies.items() if policy is not None] == ["report"]
