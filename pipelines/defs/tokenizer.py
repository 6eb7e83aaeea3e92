"""The autoencoder and the tokenizer, trained on the train split by Ray Train."""

import contextlib
from typing import Any

from flextok.errors import FlextokError
from pipelines.partitions import partition_key
from pipelines.recipe import Recipe
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


def tokenizer_settings(recipe: Recipe) -> dict[str, Any]:
    """What the tokenizer reads, with the digest of the checkpoint that it begins from today; null where that cannot be had."""
    section = recipe.tokenizer
    if section.init_from is not None and section.init_from.digest is None:
        from flextok.train.origin import origin_of, pinned

        with contextlib.suppress(FlextokError, OSError):
            section = pinned(section, origin_of(section.init_from)["digest"])
    return {"image_size": recipe.image_size, "tokenizer": section}


def splits_for_the_tokenizer(recipe: Recipe) -> tuple[str, ...]:
    """What the tokenizer depends on: the held-out split too where it decides which weights are published."""
    splits = ("train", "val") if recipe.tokenizer.train.is_judged else ("train",)
    return tuple(partition_key(recipe.corpus.name, split) for split in splits)


def train_the_tokenizer(run: StageRun) -> Made:
    """Train the tokenizer on the autoencoder's latents, validated on the val split where the recipe asks for it."""
    from flextok.train.tokenizer import train_tokenizer

    recipe = run.recipe
    train = recipe.tokenizer.train
    looks_at_val = train.validate_every is not None or train.pictures is not None
    made = train_tokenizer(
        recipe.tokenizer,
        run.latest("latents"),
        run.latest("image_shards", "train"),
        recipe.image_size,
        run.workspace.checkpoints("tokenizer"),
        recipe.compute,
        run.latest("image_shards", "val") if looks_at_val else None,
    )
    return Made(made.digest, made.url, made.metrics)
