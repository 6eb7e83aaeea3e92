"""What runs by itself, under Dagster's daemon: refreshes by the same judge and in the same waves as `flextok refresh`.

A refresh is opened by its schedule or by a changed source: its first wave of runs is requested. A sensor goes on with the
next wave once all runs of the last one have ended, until nothing is out of date. A run that failed for good, or that a
person cancelled, ends the refresh; the next one begins with what is out of date then.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from flextok.runtime.lock import LockedError, locked
from pipelines.graph import Graph
from pipelines.schedules import AutomationConfig, seconds
from pipelines.staleness import Facts, latest_record, next_wave, outside_changed, survey
from pipelines.workspace import Workspace

REFRESH_TAG = "flextok/refresh"
PROFILE_TAG = "flextok/refreshes"
NEXT_WAVE_S = 5
FAILED = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in (dg.DagsterRunStatus.SUCCESS, *FAILED)]

Requests = list[dg.RunRequest] | dg.SkipReason


@dataclass(frozen=True)
class Refresher:
    """Requests the runs of refreshes of one profile in one workspace."""

    profile: str
    graph: Graph
    facts: Facts
    workspace: Workspace

    def open(self, instance: dg.DagsterInstance, name: str) -> Requests:
        """The first wave of a refresh called `name` (after the profile's name), unless another one is at work."""
        if busy := self._busy(instance):
            return dg.SkipReason(busy)
        return self._wave(instance, f"{self.profile}: {name}", 0) or dg.SkipReason(
            "nothing to do: every asset is fresh"
        )

    def open_if_source_changed(self, instance: dg.DagsterInstance) -> Requests:
        """The first wave of a refresh, if what lies outside is not what was recorded.

        Raises FlextokError where that cannot be looked at.
        """
        for key in self.graph.keys:
            for partition in self.graph.partitions(key):
                record = latest_record(instance, key, partition)
                if outside_changed(self.facts, key.path[-1], partition, record):
                    now = datetime.datetime.now(datetime.UTC)
                    return self.open(instance, f"{key.path[-1]} changed, {now:%Y-%m-%d %H:%M:%S}")
        return dg.SkipReason("the source is as recorded")

    def go_on(self, instance: dg.DagsterInstance, ended: str | None) -> dg.SensorResult | dg.SkipReason:
        """The next wave of the latest refresh, unless `ended` is its name; the result's cursor is the name of one that ends."""
        latest = instance.get_runs(dg.RunsFilter(tags={PROFILE_TAG: self.profile}), limit=1)
        if not latest or (name := latest[0].tags[REFRESH_TAG]) == ended:
            return dg.SkipReason("no refresh is at work")
        if busy := self._busy(instance):
            return dg.SkipReason(busy)
        runs = instance.get_runs(dg.RunsFilter(tags={REFRESH_TAG: name}))
        if lost := _lost(runs):
            reason = f"refresh '{name}' ends: run {lost.run_id[:8]} has the status {lost.status.value}"
            return dg.SensorResult(skip_reason=reason, cursor=name)
        if requests := self._wave(instance, name, len(runs)):
            return dg.SensorResult(run_requests=requests, cursor=ended)
        return dg.SensorResult(skip_reason=f"refresh '{name}' is done: every asset is fresh", cursor=name)

    def _wave(self, instance: dg.DagsterInstance, name: str, runs_before: int) -> list[dg.RunRequest]:
        return [
            dg.RunRequest(
                run_key=f"{name}, {runs_before} runs before: {state.label}",
                asset_selection=[state.key],
                partition_key=state.partition,
                tags={REFRESH_TAG: name, PROFILE_TAG: self.profile, "flextok/why": "; ".join(state.reasons)},
            )
            for state in next_wave(self.graph, survey(self.graph, instance, self.facts, self.workspace))
        ]

    def _busy(self, instance: dg.DagsterInstance) -> str | None:
        """What another refresh has at work, be it a command's."""
        runs = instance.get_runs(dg.RunsFilter(tags={PROFILE_TAG: self.profile}, statuses=UNFINISHED), limit=1)
        if runs:
            return f"run {runs[0].run_id[:8]} of refresh '{runs[0].tags[REFRESH_TAG]}' is at work"
        try:
            with locked(self.workspace.root):
                return None
        except LockedError as error:
            return f"a command is at work in the workspace: {error}"


def _lost(runs: Sequence[dg.DagsterRun]) -> dg.DagsterRun | None:
    """One that failed or was cancelled and is not run again."""
    again = {run.parent_run_id for run in runs}
    lost = (run for run in runs if run.status in FAILED and run.run_id not in again)
    return next((run for run in lost if run.tags.get("dagster/will_retry") != "true"), None)


def automation(config: AutomationConfig, refresher: Refresher) -> dg.Definitions:
    """The schedules and sensors that a profile asks for, all of them on. Their names begin with the profile's."""
    name = refresher.profile.replace("-", "_")
    everything = dg.AssetSelection.key_prefixes([refresher.profile])
    evaluate = dg.define_asset_job(f"{name}_evaluate", selection=everything & dg.AssetSelection.groups("evaluation"))
    schedules: list[dg.ScheduleDefinition] = []
    sensors: list[dg.SensorDefinition] = []
    if config.refresh:

        @dg.schedule(
            name=f"{name}_refresh",
            description="Builds what is out of date.",
            target=everything,
            cron_schedule=config.refresh,
            execution_timezone=config.timezone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
        def refresh(context: dg.ScheduleEvaluationContext) -> Requests:
            return refresher.open(context.instance, context.scheduled_execution_time.isoformat())

        schedules.append(refresh)
    if config.watch_source:

        @dg.sensor(
            name=f"{name}_watch_source",
            description="Builds what is out of date once the source has changed.",
            target=everything,
            minimum_interval_seconds=seconds(config.watch_source),
            default_status=dg.DefaultSensorStatus.RUNNING,
        )
        def watch_source(context: dg.SensorEvaluationContext) -> Requests:
            return refresher.open_if_source_changed(context.instance)

        sensors.append(watch_source)
    if config.refresh or config.watch_source:

        @dg.sensor(
            name=f"{name}_go_on_with_refresh",
            description="Requests the next wave of a refresh that is at work.",
            target=everything,
            minimum_interval_seconds=NEXT_WAVE_S,
            default_status=dg.DefaultSensorStatus.RUNNING,
        )
        def go_on_with_refresh(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
            return refresher.go_on(context.instance, context.cursor)

        sensors.append(go_on_with_refresh)
    if config.evaluate:
        schedules.append(
            dg.ScheduleDefinition(
                job=evaluate,
                cron_schedule=config.evaluate,
                execution_timezone=config.timezone,
                default_status=dg.DefaultScheduleStatus.RUNNING,
            )
        )
    return dg.Definitions(jobs=[evaluate], schedules=schedules, sensors=sensors)
