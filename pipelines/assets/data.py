"""From a source of images to shards: the listing of the source, and WebDataset shards of each split."""

import dagster as dg

from pipelines.assets.stages import Stages, interruptible
from pipelines.checks import classes_for_prior, shards_match_manifest
from pipelines.partitions import split_of
from pipelines.resources import Store


def data_assets(stages: Stages) -> list[dg.AssetsDefinition]:
    """The listing and the shards."""
    recipe = stages.recipe

    @dg.asset(**stages.options("corpus", "data", {"python"}, partitioned=True))
    @interruptible
    def corpus(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """What the source holds: a digest of its listing, so that a changed source is new data."""
        from flextok.data.sources.catalog import source_digest

        digest = source_digest(recipe.corpus, split_of(context.partition_key))
        return dg.MaterializeResult(
            data_version=dg.DataVersion(digest), metadata={"settings": stages.settings("corpus")}
        )

    @dg.asset(**stages.options("image_shards", "data", {"webdataset"}, partitioned=True), deps=[stages.dep("corpus")])
    @interruptible
    def image_shards(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        """WebDataset shards of one split, with manifest and rejects."""
        from flextok.data.corpus.job import shard_corpus

        split = split_of(context.partition_key)
        made = shard_corpus(recipe.corpus, split, store.workspace.corpus(stages.corpus, split), workers=stages.workers)
        numbers = {"dagster/row_count": made.samples, "shards": made.shards, "rejects": made.rejects}
        # Held-out images without a class do no harm: the prior is not trained on them.
        condition = recipe.prior.model.condition if split == "train" else "none"
        checks = [shards_match_manifest(made.url), classes_for_prior(made.url, condition)]
        return stages.result(store, "image_shards", made.url, made.digest, numbers, checks)

    return [corpus, image_shards]
