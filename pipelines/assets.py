"""The stages as Dagster's assets: one factory makes each row of the register an asset of a profile."""

import json
from dataclasses import dataclass

import dagster as dg

from flextok.runtime import interrupts
from pipelines.partitions import partition_key, split_of
from pipelines.recipe import Recipe
from pipelines.resources import Store
from pipelines.stage import Dep, Made, Stage
from pipelines.stages import STAGES
from pipelines.workspace import Workspace

POOL = "compute"


def build_assets(recipe: Recipe) -> list[dg.AssetsDefinition]:
    """The assets of a profile, one for each stage."""
    return [_asset(stage, recipe) for stage in STAGES]


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

    def latest(self, stage: str, split: str | None = None) -> str:
        partition = partition_key(self.recipe.corpus.name, split) if split else None
        return self.store.latest(self.instance, asset_key(self.recipe, stage), partition)


def only(corpus: str, *splits: str) -> dg.SpecificPartitionsPartitionMapping:
    """A dependency on the named splits only, so that editing the others makes nothing downstream stale."""
    return dg.SpecificPartitionsPartitionMapping([partition_key(corpus, split) for split in splits])


def _asset(stage: Stage, recipe: Recipe) -> dg.AssetsDefinition:
    key = asset_key(recipe, stage.name)

    @dg.asset(
        key=key,
        description=f"{stage.makes[0].upper()}{stage.makes[1:]}.",
        group_name=stage.group,
        kinds=set(stage.kinds),
        deps=[_dep(dep, recipe) for dep in stage.deps],
        code_version=stage.code_version(recipe),
        partitions_def=dg.StaticPartitionsDefinition(recipe.partitions()) if stage.partitioned else None,
        pool=POOL,
        check_specs=[
            dg.AssetCheckSpec(check.name, asset=key, blocking=check.blocking, description=check.description)
            for check in stage.checks
        ],
    )
    def body(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        partition = context.partition_key if stage.partitioned else None
        run = AssetRun(recipe.of_partition(partition), store, context.instance, partition)
        try:
            with interrupts.owned():
                made = stage.run(run)
        except KeyboardInterrupt:
            # Dagster's own handlers raise this from the start, which Ray drops.
            raise dg.DagsterExecutionInterruptedError from None
        return _result(stage, run.recipe, store.workspace, made)

    return body


def _dep(dep: Dep, recipe: Recipe) -> dg.AssetDep:
    splits = dep.splits_for(recipe)
    mapping = only(recipe.corpus.name, *splits) if splits else None
    return dg.AssetDep(asset_key(recipe, dep.stage), partition_mapping=mapping)


def _result(stage: Stage, recipe: Recipe, workspace: Workspace, made: Made) -> dg.MaterializeResult:
    """The content digest as data version, where it lies, the settings that made it, key numbers, checks."""
    metadata = {"settings": json.dumps(stage.content(recipe), sort_keys=True), **made.numbers}
    if made.url is not None:
        metadata |= {"dagster/uri": made.url, "path": workspace.relative(made.url)}
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
    return dg.MaterializeResult(data_version=dg.DataVersion(made.digest), metadata=metadata, check_results=checks)
