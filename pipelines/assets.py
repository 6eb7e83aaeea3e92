"""The stages as Dagster's assets: one factory makes each row of the register an asset of a profile."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from flextok.errors import TransientError
from flextok.runtime import interrupts
from pipelines import metadata, pages
from pipelines.alive import alive
from pipelines.graph import AssetPart, Graph
from pipelines.lineage.telling import telling
from pipelines.partitions import partition_key, split_of
from pipelines.recipe import Recipe
from pipelines.resources import Store
from pipelines.schedules import AutomationConfig, seconds
from pipelines.stage import Dep, Made, Stage, stages_of
from pipelines.stages import STAGES
from pipelines.watching import freshness_policy
from pipelines.workspace import Workspace

logger = logging.getLogger(__name__)

POOL = "compute"
IN_PROCESS_TAG = "flextok/in_process"
"""On runs of `flextok run` and `refresh`, which no daemon looks after."""


def build_assets(recipe: Recipe) -> list[dg.AssetsDefinition]:
    """The assets of a profile, one for each stage."""
    assets: list[dg.AssetsDefinition] = []

    def reads(part: AssetPart) -> list[AssetPart]:
        graph = Graph(spec for asset in assets for spec in asset.specs)
        return [read for parts in graph.reads(*part).values() for read in parts]

    assets += [_asset(stage, recipe, reads) for stage in stages_of(recipe)]
    return assets


def asset_key(recipe: Recipe, stage: str) -> dg.AssetKey:
    """Keys carry the profile's name, so that profiles share a workspace."""
    return dg.AssetKey([recipe.name, stage])


@dataclass(frozen=True)
class AssetRun:
    """A stage's run as an asset: what it reads is what Dagster recorded last. The recipe is that of its partition."""

    recipe: Recipe
    store: Store
    instance: dg.DagsterInstance
    partition: str | None

    @property
    def workspace(self) -> Workspace:
        return self.store.workspace

    @property
    def split(self) -> str:
        assert self.partition is not None  # asked by partitioned stages only
        return split_of(self.partition)

    def latest(self, stage: str, split: str | None = None, corpus: str | None = None) -> str:
        partition = partition_key(corpus or self.recipe.corpus.name, split) if split else None
        return self.store.latest(self.instance, asset_key(self.recipe, stage), partition)


def _asset(stage: Stage, recipe: Recipe, reads: Callable[[AssetPart], list[AssetPart]]) -> dg.AssetsDefinition:
    key = asset_key(recipe, stage.name)

    @dg.asset(
        key=key,
        description=f"{stage.makes[0].upper()}{stage.makes[1:]}.",
        group_name=stage.group,
        kinds=set(stage.kinds),
        deps=[_dep(dep, recipe) for dep in stage.deps if STAGES[dep.stage].wanted(recipe)],
        code_version=stage.code_version(recipe),
        partitions_def=dg.StaticPartitionsDefinition(recipe.partitions()) if stage.partitioned else None,
        pool=POOL,
        freshness_policy=freshness_policy(recipe.automation.freshness, stage.name),
        check_specs=[
            dg.AssetCheckSpec(check.name, asset=key, blocking=check.blocking, description=check.description)
            for check in stage.checks
        ],
    )
    def body(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        partition = context.partition_key if stage.partitioned else None
        run = AssetRun(recipe.of_partition(partition), store, context.instance, partition)
        part = (key, partition)
        try:
            with (
                alive(store.workspace, context.run_id),
                telling(context.instance, store.workspace, context.run_id, part, lambda: reads(part)) as told,
            ):
                told.result = _materialize(stage, run)
        except TransientError as error:
            if IN_PROCESS_TAG in context.run.tags:  # a command, which its user repeats
                raise
            raise _again(context, recipe.automation, error) from error
        return told.result

    return body


def _materialize(stage: Stage, run: AssetRun) -> dg.MaterializeResult:
    try:
        with interrupts.owned():
            started = time.monotonic()
            made = stage.run(run)
            page = _page(stage, run, made, round(time.monotonic() - started, 1))
    except KeyboardInterrupt:
        # Dagster's own handlers raise this from the start, which Ray drops.
        raise dg.DagsterExecutionInterruptedError from None
    return _result(stage, run.recipe, run.workspace, made, page)


def _again(context: dg.AssetExecutionContext, config: AutomationConfig, error: TransientError) -> dg.RetryRequested:
    """What has Dagster run the step again, after a wait that doubles each time."""
    wait_s = seconds(config.retry_wait) * 2**context.retry_number
    context.log.warning(f"{error}; attempt {context.retry_number + 2} in {wait_s} s if there is one")
    return dg.RetryRequested(max_retries=config.retries, seconds_to_wait=wait_s)


def _dep(dep: Dep, recipe: Recipe) -> dg.AssetDep:
    # On these only, so that editing the others makes nothing downstream stale.
    partitions = dep.partitions(recipe)
    mapping = dg.SpecificPartitionsPartitionMapping(partitions) if partitions else None
    return dg.AssetDep(asset_key(recipe, dep.stage), partition_mapping=mapping)


def _page(stage: Stage, run: AssetRun, made: Made, duration_s: float) -> dict[str, Any]:
    """What the asset's page shows. What goes wrong with it costs the page alone, never what was made."""
    duration = {metadata.DURATION: duration_s}
    try:
        page = stage.page(run, made)
        return {**metadata.shown(page), **duration, **pages.spent(page, run.recipe.compute, duration_s)}
    except Exception as error:  # noqa: BLE001 - whatever it is, hours of work must not be lost for a picture
        message = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning("%s: its page is without pictures and tables (%s)", stage.name, message)
        return duration


def _result(
    stage: Stage, recipe: Recipe, workspace: Workspace, made: Made, page: Mapping[str, Any]
) -> dg.MaterializeResult:
    """The content digest as data version, its page, where it lies, the settings that made it, key numbers, checks."""
    checks = [
        dg.AssetCheckResult(
            check_name=check.name,
            passed=not (problem := made.problems[check.name]),
            severity=dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN,
            description=problem,
            metadata={"problem": problem} if problem else {},
        )
        for check in stage.checks
    ]
    return dg.MaterializeResult(
        data_version=dg.DataVersion(made.digest),
        metadata={**page, **metadata.recorded(stage, recipe, workspace, made)},
        check_results=checks,
    )
