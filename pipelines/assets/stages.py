"""What the assets of a profile share: their keys, versions, partitions, dependencies and the form of their results."""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from flextok.runtime import interrupts
from pipelines.automation import refresh_when_inputs_change
from pipelines.checks import check_specs
from pipelines.partitions import corpus_partitions, only, partition_key
from pipelines.recipe import Recipe
from pipelines.resources import Store

POOL = "compute"


def interruptible(body: Callable[..., dg.MaterializeResult]) -> Callable[..., dg.MaterializeResult]:
    """The body of an asset, with SIGINT, SIGTERM and SIGHUP raised in it as Dagster expects, whatever Ray installs."""

    @functools.wraps(body)
    def run(*arguments: Any, **named: Any) -> dg.MaterializeResult:
        with interrupts.owned(dg.DagsterExecutionInterruptedError):
            return body(*arguments, **named)

    return run


class Stages:
    """The stages of one recipe. Asset keys carry the profile's name, so that profiles share a workspace in peace."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.corpus = recipe.corpus.name
        self.partitions = corpus_partitions(self.corpus)
        self.workers = recipe.compute.num_cpus or os.cpu_count() or 1

    def key(self, stage: str) -> dg.AssetKey:
        """The asset's key."""
        return dg.AssetKey([self.recipe.name, stage])

    def options(self, stage: str, group: str, kinds: set[str], partitioned: bool = False) -> dict[str, Any]:
        """Arguments of `@dg.asset` for a stage."""
        return {
            "key": self.key(stage),
            "group_name": group,
            "kinds": kinds,
            "code_version": self.recipe.code_version(stage),
            "partitions_def": self.partitions if partitioned else None,
            "automation_condition": refresh_when_inputs_change,
            "pool": POOL,
            "check_specs": check_specs(stage, self.key(stage)),
        }

    def dep(self, stage: str, *splits: str) -> dg.AssetDep:
        """A dependency on a stage; for an asset without partitions, on these splits of a partitioned stage only."""
        return dg.AssetDep(self.key(stage), partition_mapping=only(self.corpus, *splits) if splits else None)

    def latest(self, context: dg.AssetExecutionContext, store: Store, stage: str, split: str | None = None) -> str:
        """URL of the latest artifact of a stage (its `split`)."""
        return store.latest(context.instance, self.key(stage), partition_key(self.corpus, split) if split else None)

    def settings(self, stage: str) -> str:
        """The settings a stage reads, as JSON: kept with its result, they tell later what changed."""
        return json.dumps(self.recipe.settings(stage), sort_keys=True)

    def result(
        self,
        store: Store,
        stage: str,
        url: str,
        digest: str,
        numbers: Mapping[str, Any] | None = None,
        checks: Sequence[dg.AssetCheckResult] = (),
    ) -> dg.MaterializeResult:
        """The asset's result: its content digest as data version, where it lies, what made it, and key numbers."""
        metadata = {
            "dagster/uri": url,
            "path": store.workspace.relative(url),
            "settings": self.settings(stage),
            **(numbers or {}),
        }
        return dg.MaterializeResult(data_version=dg.DataVersion(digest), metadata=metadata, check_results=checks)
