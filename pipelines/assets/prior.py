"""Token shards by Ray Data, the prior over them by Ray Train, and images sampled from it."""

import dagster as dg

from pipelines.assets.stages import Stages, interruptible
from pipelines.checks import rows_match_images
from pipelines.partitions import split_of
from pipelines.resources import Store


def prior_assets(stages: Stages) -> list[dg.AssetsDefinition]:
    """Tokens, prior, samples."""
    recipe = stages.recipe

    @dg.asset(
        **stages.options("token_shards", "prior", {"parquet", "ray"}, partitioned=True),
        deps=[stages.dep("image_shards"), stages.dep("tokenizer")],
    )
    @interruptible
    def token_shards(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        """One Parquet file of tokens for each image shard."""
        from flextok.data.corpus.reader import Corpus
        from flextok.provenance import read_provenance
        from flextok.tokenize.job import tokenize_corpus

        split = split_of(context.partition_key)
        shards_url = stages.latest(context, store, "image_shards", split)
        tokenizer_url = stages.latest(context, store, "tokenizer")
        tokenizer = read_provenance(tokenizer_url)["digest"]
        goal = store.workspace.tokens(stages.corpus, split, tokenizer)
        made = tokenize_corpus(shards_url, tokenizer_url, goal, recipe.tokens, recipe.compute)
        numbers = {"dagster/row_count": made.rows, "shards": made.shards, "images_per_s": made.images_per_s}
        expected = (Corpus.open(shards_url).num_samples - made.rejects) * len(recipe.tokens.views)
        checks = [rows_match_images(made.url, expected, tokenizer)]
        return stages.result(store, "token_shards", made.url, made.digest, numbers, checks)

    @dg.asset(**stages.options("prior", "prior", {"pytorch", "ray"}), deps=[stages.dep("token_shards", "train", "val")])
    @interruptible
    def prior(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        """The autoregressive transformer over the tokens, validated on those of the val split."""
        from flextok.train.prior import train_prior

        made = train_prior(
            recipe.prior,
            stages.latest(context, store, "token_shards", "train"),
            stages.latest(context, store, "token_shards", "val"),
            store.workspace.checkpoints("prior"),
            recipe.compute,
        )
        return stages.result(store, "prior", made.url, made.digest, made.metrics)

    return [token_shards, prior]
