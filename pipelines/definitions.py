"""The Dagster code location of some profiles in one workspace.

The `flextok` command builds it from its options; `flextok ui` hands them to Dagster's processes by environment:
FLEXTOK_PROFILE, FLEXTOK_SET (a profile, an assignment a line) and FLEXTOK_WORKSPACE.
"""

import os
from collections.abc import Sequence

import dagster as dg

from pipelines.alive import lost_runs_sensor
from pipelines.assets import build_assets
from pipelines.automation import Refresher, automation
from pipelines.edited import edited_sensor
from pipelines.facts import RecipeFacts
from pipelines.graph import Graph
from pipelines.lineage.endings import lineage_sensor
from pipelines.recipe import DEFAULT_PROFILE, Recipe, check_together, load_recipe
from pipelines.resources import Store
from pipelines.watching import watching
from pipelines.workspace import Workspace

DEFAULT_WORKSPACE = "./workspace"


def build_definitions(recipes: Sequence[Recipe], workspace: str) -> dg.Definitions:
    """Everything Dagster needs to know about some profiles; raises UsageError for those that cannot share a workspace."""
    check_together(recipes)
    assets = {recipe.name: build_assets(recipe) for recipe in recipes}
    specs = {name: [spec for asset in own for spec in asset.specs] for name, own in assets.items()}
    pipelines = dg.Definitions(
        assets=[asset for own in assets.values() for asset in own],
        sensors=[
            lineage_sensor(workspace),
            lost_runs_sensor(workspace),
            *(edited_sensor(recipe) for recipe in recipes),
            *(watching(recipe.name, Graph(specs[recipe.name]), recipe.automation.freshness) for recipe in recipes),
        ],
        resources={"store": Store(root=workspace)},
        executor=dg.in_process_executor,
    )
    by_themselves = [
        automation(
            recipe.automation,
            Refresher(recipe.name, Graph(specs[recipe.name]), RecipeFacts(recipe), Workspace(workspace)),
        )
        for recipe in recipes
    ]
    return dg.Definitions.merge(pipelines, *by_themselves)


@dg.definitions
def defs() -> dg.Definitions:
    """The profiles that the environment names."""
    profiles = os.environ.get("FLEXTOK_PROFILE", DEFAULT_PROFILE).splitlines()
    sets = os.environ.get("FLEXTOK_SET", "").splitlines()
    recipes = [load_recipe(profile, sets) for profile in profiles]
    return build_definitions(recipes, os.environ.get("FLEXTOK_WORKSPACE", DEFAULT_WORKSPACE))
