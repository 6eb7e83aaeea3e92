"""The Dagster code location of one profile in one workspace.

The `flextok` command builds it from its options; `flextok ui` hands them to Dagster's processes by environment:
FLEXTOK_PROFILE, FLEXTOK_SET (one assignment a line) and FLEXTOK_WORKSPACE.
"""

import os

import dagster as dg

from pipelines.assets import build_assets
from pipelines.automation import automation_sensor
from pipelines.lineage import lineage_sensor
from pipelines.recipe import DEFAULT_PROFILE, Recipe, load_recipe
from pipelines.resources import Store

DEFAULT_WORKSPACE = "./workspace"


def build_definitions(recipe: Recipe, workspace: str) -> dg.Definitions:
    """Everything Dagster needs to know about a profile."""
    return dg.Definitions(
        assets=build_assets(recipe),
        jobs=[dg.define_asset_job("evaluate", selection=dg.AssetSelection.groups("evaluation"))],
        sensors=[automation_sensor(), lineage_sensor(workspace)],
        resources={"store": Store(root=workspace)},
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The profile that the environment names."""
    profile = os.environ.get("FLEXTOK_PROFILE", DEFAULT_PROFILE)
    sets = os.environ.get("FLEXTOK_SET", "").splitlines()
    return build_definitions(load_recipe(profile, sets), os.environ.get("FLEXTOK_WORKSPACE", DEFAULT_WORKSPACE))
