"""The Dagster code location of one profile in one workspace.

The `flextok` command builds it from its options; `flextok ui` hands them to Dagster's processes by environment:
FLEXTOK_PROFILE, FLEXTOK_SET (one assignment a line) and FLEXTOK_WORKSPACE.
"""

import os

import dagster as dg

from pipelines.assets import build_assets
from pipelines.automation import Refresher, automation
from pipelines.facts import RecipeFacts
from pipelines.graph import Graph
from pipelines.lineage import lineage_sensor
from pipelines.recipe import DEFAULT_PROFILE, Recipe, load_recipe
from pipelines.resources import Store
from pipelines.workspace import Workspace

DEFAULT_WORKSPACE = "./workspace"


def build_definitions(recipe: Recipe, workspace: str) -> dg.Definitions:
    """Everything Dagster needs to know about a profile."""
    assets = build_assets(recipe)
    graph = Graph(spec for asset in assets for spec in asset.specs)
    refresher = Refresher(graph, RecipeFacts(recipe), Workspace(workspace))
    pipeline = dg.Definitions(
        assets=assets,
        sensors=[lineage_sensor(graph, workspace)],
        resources={"store": Store(root=workspace)},
        executor=dg.in_process_executor,
    )
    return dg.Definitions.merge(pipeline, automation(recipe.automation, refresher))


@dg.definitions
def defs() -> dg.Definitions:
    """The profile that the environment names."""
    profile = os.environ.get("FLEXTOK_PROFILE", DEFAULT_PROFILE)
    sets = os.environ.get("FLEXTOK_SET", "").splitlines()
    return build_definitions(load_recipe(profile, sets), os.environ.get("FLEXTOK_WORKSPACE", DEFAULT_WORKSPACE))
