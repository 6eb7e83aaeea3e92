"""The stages of the pipeline, a row each; bodies are in pipelines.defs.

A stage reads whole sections of the recipe: those that its body hands to the library.
"""

from functools import partial
from typing import Any

from flextok.config import Config
from flextok.evaluate.config import (  # noqa: TID253
    GenerationConfig,
    ReconstructionConfig,
    ReferenceConfig,
    SamplingConfig,
    SetComparisonConfig,
)
from pipelines import pages
from pipelines.defs import data, evaluation, prior, tokenizer
from pipelines.recipe import Recipe
from pipelines.stage import STAGES, Check, Dep, Stage, register

__all__ = ["STAGES", "stage_table"]

BOTH = ("train", "val")
NOT_WORSE = "The first metric is not worse than the last promoted evaluation's by more than automation.max_regression."


def _evaluation(recipe: Recipe, part: type[Config]) -> dict[str, Any]:
    """The part of the evaluation's settings that one evaluation takes."""
    return {f"evaluation.{name}": value for name, value in recipe.evaluation.part(part).content().items()}


def _sampling(recipe: Recipe) -> dict[str, Any]:
    """What decides the samples; where not all pictures are kept, features are, of which the metrics of sets say which."""
    all_pictures = recipe.evaluation.samples.pictures is None
    return _evaluation(recipe, SamplingConfig) | ({} if all_pictures else _evaluation(recipe, SetComparisonConfig))


register(
    Stage(
        "corpus",
        "a listing of the source; a changed source makes what depends on it stale",
        "data",
        ("python",),
        version=1,
        settings=data.listing_settings,
        run=data.list_source,
        unchanged=data.source_is_as_recorded,
        partitioned=True,
        by_corpus=True,
    )
)
register(
    Stage(
        "image_shards",
        "WebDataset shards, manifest, rejects",
        "data",
        ("webdataset",),
        version=2,
        settings=lambda recipe: {"corpus": recipe.corpus},
        deps=(Dep("corpus"),),
        run=data.shard_images,
        partitioned=True,
        by_corpus=True,
        checks=(
            Check(data.SHARDS_MATCH_MANIFEST, "Every shard is there with the bytes its manifest says.", blocking=True),
            Check(data.FEW_REJECTS, "Far fewer images are rejected than would end the sharding."),
            Check(data.CLASSES_FOR_PRIOR, "Every sample has a class, if the prior is to be trained on classes."),
        ),
        folder="corpora/<corpus>/<split>/",
        page=pages.image_shards,
    )
)
register(
    Stage(
        "latents",
        "the autoencoder whose latents the tokenizer works on, trained or taken over",
        "tokenizer",
        ("pytorch", "ray"),
        version=1,
        settings=lambda recipe: {"image_size": recipe.image_size, "latents": recipe.latents},
        deps=(Dep("image_shards", ("train",)),),
        run=tokenizer.train_the_autoencoder,
        folder="checkpoints/vae/<digest>/",
        page=partial(pages.training, "latents"),
    )
)
register(
    Stage(
        "tokenizer",
        "FlexTok, trained by Ray Train, resumable",
        "tokenizer",
        ("pytorch", "ray"),
        version=1,
        settings=tokenizer.tokenizer_settings,
        deps=(Dep("latents"), Dep("image_shards", tokenizer.splits_for_the_tokenizer)),
        run=tokenizer.train_the_tokenizer,
        folder="checkpoints/tokenizer/<digest>/",
        page=partial(pages.training, "tokenizer"),
    )
)
register(
    Stage(
        "reference",
        "crops and features of the held-out images, against which sets are measured",
        "evaluation",
        ("safetensors",),
        version=1,
        settings=lambda recipe: {"image_size": recipe.image_size, **_evaluation(recipe, ReferenceConfig)},
        deps=(Dep("image_shards", ("val",)),),
        run=evaluation.make_the_reference,
        folder="reference/<digest>/",
        page=pages.reference,
    )
)
register(
    Stage(
        "reconstructions",
        "held-out images at 1, 2, 4, ... tokens: MAE, PSNR, distribution distance",
        "evaluation",
        ("pytorch",),
        version=1,
        settings=lambda recipe: _evaluation(recipe, ReconstructionConfig),
        deps=(Dep("tokenizer"), Dep("image_shards", ("val",)), Dep("reference", added=True)),
        run=evaluation.reconstruct,
        checks=(
            Check(evaluation.MORE_TOKENS_ARE_CLOSER, "All tokens give a smaller pixel error than one."),
            Check(evaluation.NOT_WORSE_THAN_PROMOTED, NOT_WORSE),
        ),
        folder="evaluation/<digest>/",
        page=pages.reconstructions,
    )
)
register(
    Stage(
        "token_shards",
        "every image shard as a Parquet file of tokens, by Ray Data",
        "prior",
        ("parquet", "ray"),
        version=1,
        settings=lambda recipe: {"tokens": recipe.tokens},
        deps=(Dep("image_shards"), Dep("tokenizer")),
        run=prior.tokenize_shards,
        partitioned=True,
        checks=(
            Check(
                prior.ROWS_MATCH_IMAGES,
                "Every image that was not rejected has tokens of the latest tokenizer.",
                blocking=True,
            ),
            Check(prior.CODEBOOK_IN_USE, "The ids in use are not far fewer than uniform ones would be."),
        ),
        folder="tokens/<corpus>/<split>/<tokenizer>/",
        page=pages.token_shards,
    )
)
register(
    Stage(
        "text_features",
        "features of all captions, where the prior reads them by a text encoder with weights",
        "prior",
        ("safetensors", "ray"),
        version=1,
        settings=lambda recipe: {"prior.model.text_encoder": recipe.prior.model.text_encoder},
        deps=(Dep("image_shards"),),
        run=prior.encode_the_captions,
        partitioned=True,
        folder="text_features/<corpus>/<split>/<encoder>/",
        page=pages.text_features,
        wanted=prior.reads_stored_text,
    )
)
register(
    Stage(
        "prior",
        "a transformer over the tokens, conditioned on the class or the caption",
        "prior",
        ("pytorch", "ray"),
        version=1,
        settings=lambda recipe: {"prior": recipe.prior},
        deps=(Dep("token_shards", prior.partitions_of_tokens), Dep("text_features", prior.partitions_of_tokens)),
        run=prior.train_the_prior,
        folder="checkpoints/prior/<digest>/",
        page=partial(pages.training, "prior"),
    )
)
register(
    Stage(
        "samples",
        "images drawn from the prior, at several token counts",
        "evaluation",
        ("pytorch",),
        version=1,
        settings=_sampling,
        deps=(Dep("prior"), Dep("tokenizer"), Dep("image_shards", evaluation.partition_of_conditions)),
        run=evaluation.draw_samples,
        folder="samples/<digest>/",
        page=pages.samples,
    )
)
register(
    Stage(
        "fid",
        "distance of the samples to held-out images, beside that of random tokens",
        "evaluation",
        ("pytorch",),
        version=1,
        settings=lambda recipe: {
            **_evaluation(recipe, GenerationConfig),
            "evaluation.samples": recipe.evaluation.samples,
        },
        deps=(Dep("samples"), Dep("tokenizer"), Dep("image_shards", ("val",)), Dep("reference", added=True)),
        run=evaluation.measure_samples,
        checks=(
            Check(evaluation.CLOSER_THAN_RANDOM, "Samples are closer to the val set than images of random tokens."),
            Check(evaluation.NOT_WORSE_THAN_PROMOTED, NOT_WORSE),
        ),
        folder="evaluation/<digest>/",
        page=pages.fid,
    )
)
register(
    Stage(
        "report",
        "one self-contained HTML page",
        "evaluation",
        ("html",),
        version=1,
        settings=lambda recipe: {"report": recipe.report},
        deps=(
            *(Dep(name) for name in ("reconstructions", "fid", "samples", "latents", "tokenizer", "prior")),
            Dep("token_shards", BOTH),
            Dep("image_shards", BOTH),
        ),
        run=evaluation.write_the_report,
        checks=(Check(evaluation.REPORT_IS_READABLE, "The page is whole and needs nothing beside it."),),
        folder="evaluation/<digest>/report/index.html",
        page=pages.report,
    )
)


def stage_table() -> str:
    """The table of the stages in Markdown, as it is in the README."""
    lines = ["| asset | what it makes | where it lies in the workspace |", "| --- | --- | --- |"]
    lines += [f"| `{stage.name}` | {stage.makes} | {f'`{stage.folder}`' if stage.folder else ''} |" for stage in STAGES]
    return "\n".join(lines)
