"""What a person should hear of: runs that failed for good, checks that do not hold, results older than they may be, and
schedules that a jump of the clock has silenced.

Under Dagster's daemon a sensor looks for it once a minute and tells what is new since its last look.
"""

import datetime
import difflib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from flextok.errors import FlextokError, UsageError
from pipelines.alive import PROCESS_IS_GONE
from pipelines.graph import AssetPart, Graph, label
from pipelines.notify import ADDRESSES, is_wanted, notify
from pipelines.schedules import seconds
from pipelines.staleness import checks_of, latest_record

LOOK_EVERY_S = 60
LOOK_BACK = datetime.timedelta(days=1)
"""Failed runs older than that are no news."""
MOST_RUNS = 200
CLOCKS_DIFFER_S = 300  # two machines' may, by so much


def problems(instance: dg.DagsterInstance, graph: Graph, freshness: Mapping[str, str], now: float) -> dict[str, str]:
    """What is wrong at the time `now` (seconds since the epoch), a line for each, by a name that stays while it is wrong."""
    parts = [(key, partition) for key in graph.keys for partition in graph.partitions(key)]
    latest = {part: record for part in parts if (record := latest_record(instance, *part)) is not None}
    return {
        **dict(_failed_runs(instance, graph, now)),
        **dict(_failed_checks(instance, latest)),
        **dict(_old_results(latest, freshness, now)),
        **dict(_silenced_schedules(instance, graph, now)),
    }


def check_freshness(freshness: Mapping[str, str], stages: list[str]) -> None:
    """Raises UsageError for the freshness of a stage that there is not."""
    for stage in freshness:
        if stage not in stages:
            near = difflib.get_close_matches(stage, stages, n=1, cutoff=0.0)
            raise UsageError(f"expected a stage in automation.freshness, found '{stage}'; did you mean '{near[0]}'?")


def freshness_policy(freshness: Mapping[str, str], stage: str) -> dg.FreshnessPolicy | None:
    """What Dagster's UI shows of it."""
    age = freshness.get(stage)
    return dg.FreshnessPolicy.time_window(datetime.timedelta(seconds=seconds(age))) if age else None


def watching(profile: str, graph: Graph, freshness: Mapping[str, str]) -> dg.SensorDefinition:
    """The sensor of a profile."""
    check_freshness(freshness, [key.path[-1] for key in graph.keys])

    @dg.sensor(
        name=f"{profile.replace('-', '_')}_tell_problems",
        description=f"Tells the addresses in {ADDRESSES} of failed runs, failed checks and old results.",
        minimum_interval_seconds=LOOK_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def tell_problems(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if not is_wanted():
            return dg.SkipReason(f"nobody is to be told: {ADDRESSES} is not set")
        found = problems(context.instance, graph, freshness, time.time())
        told = set(json.loads(context.cursor or "[]"))
        new = [name for name in found if name not in told]
        if new:
            try:
                notify(
                    f"flextok {profile}: {len(new)} new {'problem' if len(new) == 1 else 'problems'}",
                    [found[name] for name in new],
                )
            except FlextokError as error:
                context.log.warning(str(error))
                return dg.SkipReason(str(error))
        return dg.SensorResult(
            skip_reason=f"{len(new)} of {len(found)} problems are new", cursor=json.dumps(sorted(found))
        )

    return tell_problems


def _failed_runs(instance: dg.DagsterInstance, graph: Graph, now: float) -> Iterator[tuple[str, str]]:
    since = datetime.datetime.fromtimestamp(now, datetime.UTC) - LOOK_BACK
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since)
    for run in instance.get_runs(failed, limit=MOST_RUNS):
        keys = [key for key in run.asset_selection or () if key in graph.keys]
        if run.tags.get("dagster/will_retry") == "true" or (run.asset_selection and not keys):
            continue
        what = ", ".join(label(key, run.tags.get("dagster/partition")) for key in sorted(keys)) or run.job_name
        yield f"run {run.run_id}", f"{what}: run {run.run_id[:8]} failed: {_why(instance, run)}"


def _why(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """The first line of what ended it, without what Dagster wraps around that."""
    steps = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    for record in steps:
        event = record.event_log_entry.dagster_event
        error = event.step_failure_data.error if event is not None else None
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None:
            return error.message.strip().splitlines()[0]
    return PROCESS_IS_GONE


def _failed_checks(instance: dg.DagsterInstance, latest: Mapping[AssetPart, Any]) -> Iterator[tuple[str, str]]:
    """Of the latest result of each asset and partition."""
    for part, record in latest.items():
        for check in checks_of(instance, record.run_id, part):
            if not check.passed:
                yield (
                    f"check {record.run_id} {label(*part)} {check.check_name}",
                    f"{label(*part)}: {check.check_name} does not hold: {check.description}",
                )


def _old_results(
    latest: Mapping[AssetPart, Any], freshness: Mapping[str, str], now: float
) -> Iterator[tuple[str, str]]:
    for part, record in latest.items():
        age = freshness.get(part[0].path[-1])
        if age and now - record.timestamp > seconds(age):
            made = datetime.datetime.fromtimestamp(record.timestamp, datetime.UTC)
            yield (
                f"age {record.storage_id}",
                f"{label(*part)}: the newest result is of {made:%Y-%m-%d %H:%M} UTC, older than {age}",
            )


def _silenced_schedules(instance: dg.DagsterInstance, graph: Graph, now: float) -> Iterator[tuple[str, str]]:
    """Dagster goes on from the last time that a schedule was looked at, and waits for it where it is still to come."""
    profiles = {key.path[0].replace("-", "_") for key in graph.keys}
    states = instance.all_instigator_state() if instance.schedule_storage else []  # one in memory has none
    for state in states:
        name, seen = state.instigator_name, getattr(state.instigator_data, "last_iteration_timestamp", None) or 0.0
        if seen > now + CLOCKS_DIFFER_S and any(name.startswith(f"{profile}_") for profile in profiles):
            until = f"{datetime.datetime.fromtimestamp(seen, datetime.UTC):%Y-%m-%d %H:%M} UTC"
            yield (
                f"schedule {name} {until}",
                f"{name}: the clock has jumped back from {until}, before which nothing starts by itself; use `flextok refresh`",
            )
