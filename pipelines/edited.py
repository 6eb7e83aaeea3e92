"""Tells Dagster of edited settings of a corpus, so that its pages call the same parts out of date as `status` does.

They compare versions: a code version belongs to an asset with all of its partitions, settings of a corpus to some of them.
So these settings are a part of the data version of `corpus`, and an edit is recorded there as new data.
"""

import dagster as dg

from pipelines import staleness
from pipelines.defs.data import LISTING, corpus_version
from pipelines.recipe import Recipe
from pipelines.stages import STAGES

CORPUS = "corpus"
LOOK_EVERY_S = 10


def edited_corpora(instance: dg.DagsterInstance, recipe: Recipe) -> list[dg.AssetMaterialization]:
    """A new record for each partition of `corpus` that was listed with other settings than today's."""
    key = dg.AssetKey([recipe.name, CORPUS])
    stage = STAGES[CORPUS]
    events = []
    for partition in recipe.partitions():
        record = staleness.latest_record(instance, key, partition)
        known = staleness.metadata_of(record)
        if LISTING not in known:  # never made, or by earlier code
            continue
        version = corpus_version(recipe.of_partition(partition).corpus, known[LISTING])
        if version != staleness.data_version(record):
            tags = {staleness.DATA_VERSION: version, staleness.CODE_VERSION: stage.code_version(recipe)}
            metadata = {LISTING: known[LISTING], "settings": known["settings"]}
            events.append(dg.AssetMaterialization(key, partition=partition, tags=tags, metadata=metadata))
    return events


def edited_sensor(recipe: Recipe) -> dg.SensorDefinition:
    """Looks for them under Dagster's daemon."""

    @dg.sensor(
        name=f"{recipe.name.replace('-', '_')}_tell_edits",
        description="Has the assets that were made with other settings of a corpus show as out of date.",
        minimum_interval_seconds=LOOK_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def tell_edits(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return dg.SensorResult(asset_events=edited_corpora(context.instance, recipe))

    return tell_edits
