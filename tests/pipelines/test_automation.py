"""Refreshes by the daemon's schedule and sensors run what `flextok refresh` runs, in the same waves."""

from collections.abc import Callable
from datetime import UTC, datetime

import dagster as dg
import pytest
from asset_chain import Chain
from test_stale import ALL, MATRIX

from flextok.errors import FlextokError, UsageError
from flextok.runtime.lock import locked
from pipelines.automation import PROFILE_TAG, REFRESH_TAG, Refresher
from pipelines.definitions import build_definitions
from pipelines.recipe import load_recipe

ALWAYS = {"lineage", "lost_runs", "smoke_tell_edits", "smoke_tell_problems"}
ON = ["automation.refresh='0 3 * * *'", "automation.watch_source=15m", "automation.evaluate='0 8 * * 1'"]


class Daemon:
    """Runs what is requested at once, as Dagster's daemon would with a free machine."""

    def __init__(self, chain: Chain):
        self.chain = chain
        self.cursor: str | None = None
        self.keys: set[str] = set()
        """A sensor's run keys that were used: it gets no second run for one."""

    @property
    def refresher(self) -> Refresher:
        return Refresher("chain", self.chain.executor().graph, self.chain, self.chain.workspace)

    def tick(self, name: str = "tick") -> list[str]:
        """The schedule's; labels of what ran."""
        return self._run(self.refresher.open(self.chain.instance, name))

    def look(self) -> list[str]:
        """The sensor's that looks at the source."""
        return self._run(self.refresher.open_if_source_changed(self.chain.instance))

    def go_on(self) -> list[str]:
        """The sensor's that asks for the next wave."""
        found = self.refresher.go_on(self.chain.instance, self.cursor)
        if isinstance(found, dg.SkipReason):
            return []
        self.cursor = found.cursor
        return self._run(found.run_requests or [])

    def until_done(self) -> list[str]:
        ran = []
        while wave := self.go_on():
            ran += wave
        return ran

    def _run(self, requests: list[dg.RunRequest] | dg.SkipReason) -> list[str]:
        if isinstance(requests, dg.SkipReason):
            return []
        before = len(self.chain.ran)
        job = self.chain.definitions().resolve_implicit_global_asset_job_def()
        for request in requests:
            assert request.run_key not in self.keys
            self.keys.add(request.run_key)
            job.execute_in_process(
                instance=self.chain.instance,
                asset_selection=list(request.asset_selection),
                partition_key=request.partition_key,
                tags=dict(request.tags),
                raise_on_error=False,
            )
        return self.chain.ran[before:]


@pytest.fixture
def daemon(tmp_path) -> Daemon:
    return Daemon(Chain(tmp_path))


@pytest.fixture
def settled(daemon: Daemon) -> Daemon:
    assert daemon.chain.refresh() == ALL
    daemon.chain.ran.clear()
    return daemon


def test_a_first_tick_builds_everything_a_wave_at_a_time(daemon: Daemon):
    assert daemon.tick() == ALL[:2]
    assert daemon.go_on() == ALL[2:4]
    assert daemon.until_done() == ALL[4:]
    assert daemon.tick("next") == [] and daemon.go_on() == []
    assert daemon.chain.must_run() == set()


@pytest.mark.parametrize("case", MATRIX)
def test_a_change_runs_what_refresh_runs(settled: Daemon, case: str):
    change, at_once, in_the_end = MATRIX[case]
    change(settled.chain)
    ran = settled.tick()
    assert set(ran) <= at_once
    assert ran + settled.until_done() == in_the_end
    assert settled.chain.refresh() == []


def test_only_a_changed_source_opens_a_refresh_between_ticks(settled: Daemon):
    settled.chain.code["report"] = "2"
    assert settled.look() == []
    settled.chain.listing["c/train"] = "listing-2"
    assert settled.look() == ["source[c/train]"]
    assert settled.until_done() == ["shards[c/train]", "report"]
    settled.chain.listing["unreachable"] = ""
    with pytest.raises(FlextokError, match="nothing there"):
        settled.look()


def test_a_failed_run_ends_the_refresh_and_the_next_tick_goes_on(daemon: Daemon):
    daemon.chain.broken.add("model")
    assert daemon.tick("first") == ALL[:2]
    assert daemon.until_done() == ALL[2:5]
    assert daemon.go_on() == []
    daemon.chain.broken.clear()
    assert daemon.go_on() == []
    assert daemon.tick("second") == ALL[4:5]
    assert daemon.until_done() == ALL[5:]


def test_a_failed_run_that_dagster_runs_again_does_not_end_it(daemon: Daemon):
    daemon.chain.broken.add("model")
    assert daemon.tick() == ALL[:2] and daemon.go_on() == ALL[2:4] and daemon.go_on() == ["model"]
    (failed,) = daemon.chain.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    daemon.chain.instance.add_run_tags(failed.run_id, {"dagster/will_retry": "true"})
    daemon.chain.broken.clear()
    assert daemon.go_on() == ["model"]
    assert daemon.until_done() == ALL[5:]


def test_an_early_cut_off_holds_and_a_closed_refresh_stays_closed(settled: Daemon):
    settled.chain.code["model"] = "2"
    assert settled.tick() == ["model"]
    assert settled.until_done() == []
    settled.chain.code["report"] = "2"
    assert settled.go_on() == []
    assert settled.tick("next") == ["report"]


def at_work(daemon: Daemon, status: str) -> Callable[[], None]:
    """A run of a refresh that is not over; gives what ends it."""
    job = daemon.chain.definitions().resolve_implicit_global_asset_job_def()
    tags = {REFRESH_TAG: "other", PROFILE_TAG: "chain"}
    run = daemon.chain.instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus(status))
    return lambda: daemon.chain.instance.report_run_canceled(run)


@pytest.mark.parametrize("status", ["STARTING", "STARTED", "CANCELING"])
def test_two_refreshes_never_run_at_once(settled: Daemon, status: str):
    settled.chain.code["report"] = "2"
    end = at_work(settled, status)
    assert settled.tick() == [] and settled.go_on() == []
    end()
    assert settled.go_on() == []  # a person cancelled it
    assert settled.tick() == ["report"]


def test_none_begins_beside_a_command_at_work(settled: Daemon):
    settled.chain.code["report"] = "2"
    with locked(settled.chain.workspace.root):
        found = settled.refresher.open(settled.chain.instance, "tick")
        assert isinstance(found, dg.SkipReason) and "a command is at work" in (found.skip_message or "")
    assert settled.tick() == ["report"]


def test_a_profile_says_what_runs_by_itself(tmp_path):
    quiet = build_definitions([load_recipe("smoke")], str(tmp_path))
    assert not quiet.schedules and {sensor.name for sensor in quiet.sensors or ()} == ALWAYS
    definitions = build_definitions([load_recipe("smoke", [*ON, "automation.timezone=Europe/Berlin"])], str(tmp_path))
    dg.Definitions.validate_loadable(definitions)
    schedules = {schedule.name: schedule for schedule in definitions.schedules or ()}
    assert {name: schedule.cron_schedule for name, schedule in schedules.items()} == {
        "smoke_refresh": "0 3 * * *", "smoke_evaluate_schedule": "0 8 * * 1",
    }  # fmt: skip
    assert {schedule.execution_timezone for schedule in schedules.values()} == {"Europe/Berlin"}
    assert {schedule.default_status for schedule in schedules.values()} == {dg.DefaultScheduleStatus.RUNNING}
    sensors = {sensor.name: sensor for sensor in definitions.sensors or ()}
    assert set(sensors) == {*ALWAYS, "smoke_watch_source", "smoke_go_on_with_refresh"}
    assert sensors["smoke_watch_source"].minimum_interval_seconds == 900


def test_the_schedules_tick_asks_for_the_first_wave(tmp_path):
    definitions = build_definitions([load_recipe("smoke", ON)], str(tmp_path))
    (refresh,) = [schedule for schedule in definitions.schedules or () if schedule.name == "smoke_refresh"]
    with (
        dg.DagsterInstance.local_temp(str(tmp_path)) as instance,
        dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=datetime(2026, 1, 2, 3, tzinfo=UTC),
            repository_def=definitions.get_repository_def(),
        ) as context,
    ):
        made = refresh.evaluate_tick(context)
    found = [(request.partition_key, request.tags[REFRESH_TAG]) for request in made.run_requests or ()]
    assert found == [
        ("scenes/train", "smoke: 2026-01-02T03:00:00+00:00"),
        ("scenes/val", "smoke: 2026-01-02T03:00:00+00:00"),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("automation.refresh=nightly", "expected refresh as a cron line such as '0 3 \\* \\* \\*', found 'nightly'"),
        ("automation.evaluate='0 25 * * *'", "expected evaluate as a cron line"),
        ("automation.timezone=Mars/Base", "expected a time zone such as UTC or Europe/Berlin, found 'Mars/Base'"),
        ("automation.watch_source=15", "automation.watch_source"),
        ("automation.watch_source=15 minutes", "expected a duration such as 30s, 15m, 6h or 1d, found '15 minutes'"),
        ("automation.refesh='0 3 * * *'", "the nearest known key is 'automation.refresh'"),
    ],
)
def test_wrong_automation_ends_in_one_line(wrong: str, message: str):
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe("smoke", [wrong])
    assert "\n" not in str(caught.value)


def test_several_profiles_stand_in_one_location_with_names_of_their_own(tmp_path):
    recipes = [load_recipe(name, ON) for name in ("smoke", "imagenet256-small")]
    definitions = build_definitions(recipes, str(tmp_path))
    dg.Definitions.validate_loadable(definitions)
    keys = {tuple(spec.key.path) for spec in definitions.resolve_all_asset_specs()}
    assert {("smoke", "tokenizer"), ("imagenet256-small", "tokenizer")} <= keys and len(keys) == 22
    assert {schedule.name for schedule in definitions.schedules or ()} == {
        "smoke_refresh", "smoke_evaluate_schedule", "imagenet256_small_refresh", "imagenet256_small_evaluate_schedule",
    }  # fmt: skip
    job = definitions.resolve_job_def("smoke_evaluate")
    assert {key.path[0] for key in job.asset_layer.executable_asset_keys} == {"smoke"}


@pytest.mark.parametrize(
    ("profiles", "sets", "message"),
    [
        (["smoke", "smoke"], [], "found two called 'smoke'"),
        (
            ["imagenet256", "imagenet256-small"],
            ["corpus.name=one"],
            "'one' differs between the profiles imagenet256 and imagenet256-small",
        ),
    ],
)
def test_profiles_that_would_overwrite_each_other_are_refused(tmp_path, profiles, sets, message: str):
    recipes = [load_recipe(name, sets) for name in profiles]
    if len(set(profiles)) == 2:
        recipes[1] = load_recipe(profiles[1], [*sets, "corpus.min_side=99"])
    with pytest.raises(UsageError, match=message):
        build_definitions(recipes, str(tmp_path))
