"""The autoencoder and the tokenizer, trained on the train split by Ray Train."""

from pipelines.stage import Made, StageRun


def train_the_autoencoder(run: StageRun) -> Made:
    """Train the autoencoder, or take over a published one."""
    from flextok.train.autoencoder import train_autoencoder

    recipe = run.recipe
    made = train_autoencoder(
        recipe.latents,
        run.latest("image_shards", "train"),
        recipe.image_size,
        run.workspace.checkpoints("vae"),
        recipe.compute,
    )
    return Made(made.digest, made.url, made.metrics)


def train_the_tokenizer(run: StageRun) -> Made:
    """Train the tokenizer on the autoencoder's latents."""
    from flextok.train.tokenizer import train_tokenizer

    recipe = run.recipe
    made = train_tokenizer(
        recipe.tokenizer,
        run.latest("latents"),
        run.latest("image_shards", "train"),
        recipe.image_size,
        run.workspace.checkpoints("tokenizer"),
        recipe.compute,
    )
    return Made(made.digest, made.url, made.metrics)
