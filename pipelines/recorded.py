"""Settings recorded with an asset, in today's shape, also where an earlier version of the code recorded them.

A record holds the settings that its stage read, by dotted name. Brought up to date they are a recipe's again: keys that have
moved are moved, what decides nothing is dropped, and a setting that is younger than the record has its default. So they
can be compared with today's by the one rule of `Stage.content`.
"""

from collections.abc import Mapping
from typing import Any

from flextok.config import parse_config
from flextok.errors import UsageError
from pipelines.moved import move_keys
from pipelines.recipe import Recipe
from pipelines.stage import Stage

PRECISION = "evaluation.precision"


def recorded_content(
    stage: Stage, recipe: Recipe, record: Mapping[str, Any], made_by: Mapping[str, Any]
) -> dict[str, Any]:
    """The content that `stage` had for the settings in `record`, or `record` itself where it makes no recipe today.

    `made_by` is the recipe in the provenance of what was made.
    """
    now = stage.content(recipe)
    record = {**record, **_unrecorded(now, record, made_by)}
    values = recipe.model_dump(mode="json")
    for name in {dotted.split(".")[0] for dotted in now}:
        values.pop(name, None)
    for dotted, value in record.items():
        _put(values, dotted.split("."), value)
    move_keys(values, Recipe, replace=True)
    try:
        return stage.content(parse_config(Recipe, values, "record"))
    except UsageError:
        return dict(record)


def _unrecorded(now: Mapping[str, Any], record: Mapping[str, Any], made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The precision of an evaluation, which stages did not record at first; what they made says it.

    Samples name the data type instead, which "auto" may have chosen.
    """
    if PRECISION not in now or PRECISION in record:
        return {}
    dtype = made_by.get("decoder", {}).get("dtype") if now[PRECISION] != "auto" else "auto"
    return {PRECISION: made_by.get("precision", dtype)}


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for name in parents:
        values = values.setdefault(name, {})
    values[last] = value
