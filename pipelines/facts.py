"""What the judge of staleness asks about stages, answered by their register for one recipe."""

from collections.abc import Mapping
from typing import Any

from pipelines.partitions import split_of
from pipelines.recipe import Recipe
from pipelines.recorded import recorded_content
from pipelines.stages import STAGES


class RecipeFacts:
    """See pipelines.staleness.Facts."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def settings(self, stage: str, partition: str | None) -> dict[str, Any]:
        return STAGES[stage].content(self.recipe.of_partition(partition))

    def recorded(
        self, stage: str, partition: str | None, settings: dict[str, Any], made_by: Mapping[str, Any]
    ) -> dict[str, Any]:
        return recorded_content(STAGES[stage], self.recipe.of_partition(partition), settings, made_by)

    def unchanged(self, stage: str, partition: str | None, version: str | None) -> bool:
        look = STAGES[stage].unchanged
        return look is None or look(self.recipe.of_partition(partition), split_of(partition or ""), version)

    def added(self, stage: str) -> frozenset[str]:
        return frozenset(dep.stage for dep in STAGES[stage].deps if dep.added)
