"""Stage 0 and the tokenizer, trained on the train split by Ray Train."""

import dagster as dg

from pipelines.assets.stages import Stages, interruptible
from pipelines.resources import Store


def tokenizer_assets(stages: Stages) -> list[dg.AssetsDefinition]:
    """The autoencoder under the tokenizer, and the tokenizer."""
    recipe = stages.recipe

    @dg.asset(**stages.options("latents", "tokenizer", {"pytorch", "ray"}), deps=[stages.dep("image_shards", "train")])
    @interruptible
    def latents(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        """Stage 0: the autoencoder whose latents the tokenizer works on, trained or taken over."""
        from flextok.train.autoencoder import train_latents

        made = train_latents(
            recipe.latents,
            stages.latest(context, store, "image_shards", "train"),
            recipe.image_size,
            store.workspace.checkpoints("vae"),
            recipe.compute,
        )
        return stages.result(store, "latents", made.url, made.digest, made.metrics)

    @dg.asset(
        **stages.options("tokenizer", "tokenizer", {"pytorch", "ray"}),
        deps=[stages.dep("latents"), stages.dep("image_shards", "train")],
    )
    @interruptible
    def tokenizer(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        """FlexTok: images to ordered tokens and back."""
        from flextok.train.tokenizer import train_tokenizer

        made = train_tokenizer(
            recipe.tokenizer,
            stages.latest(context, store, "latents"),
            stages.latest(context, store, "image_shards", "train"),
            recipe.image_size,
            store.workspace.checkpoints("tokenizer"),
            recipe.compute,
        )
        return stages.result(store, "tokenizer", made.url, made.digest, made.metrics)

    return [latents, tokenizer]
