"""From a source of images to shards: the listing of the source, and WebDataset shards of each split."""

from typing import Any

from flextok.data.config import CorpusConfig, ListingConfig
from flextok.digests import digest_of
from pipelines.recipe import OtherCorpus, Recipe
from pipelines.stage import Made, StageRun

SHARDS_MATCH_MANIFEST = "shards_match_manifest"
LISTING = "listing"
CLASSES_FOR_PRIOR = "classes_for_prior"
FEW_REJECTS = "few_rejects"
FEW = 0.1
"""Part of what `corpus.max_reject_fraction` allows."""


def listing_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that a listing of the source depends on."""
    return {f"corpus.{name}": value for name, value in recipe.corpus.part(ListingConfig).content().items()}


def list_source(run: StageRun) -> Made:
    """List the source of one split."""
    listing = source_digest(run.recipe.corpus, run.split)
    return Made(corpus_version(run.recipe.corpus, listing), numbers={LISTING: listing})


def corpus_version(corpus: CorpusConfig, listing: str) -> str:
    """The data version of a split: a changed source is new data, and so is a changed setting of its corpus."""
    return digest_of([listing, corpus.content()])


def source_is_as_recorded(recipe: Recipe, split: str, version: str | None) -> bool:
    """Whether `version` stands for the source and the settings of today."""
    listing = source_digest(recipe.corpus, split)
    return version in (corpus_version(recipe.corpus, listing), listing)  # the latter by earlier code


def source_digest(corpus: CorpusConfig, split: str) -> str:
    """A digest of the source's listing."""
    from flextok.data.sources.catalog import source_digest

    return source_digest(corpus, split)


def shard_images(run: StageRun) -> Made:
    """Shard one split."""
    from flextok.data.corpus.job import shard_corpus

    recipe = run.recipe
    dest = run.workspace.corpus(recipe.corpus.name, run.split)
    workers = None if recipe.compute.on_cluster else recipe.compute.cpus()
    made = shard_corpus(recipe.corpus, run.split, dest, workers, compute=recipe.compute)
    return Made(
        made.digest,
        made.url,
        {"dagster/row_count": made.samples, "shards": made.shards, "rejects": made.rejects},
        {
            SHARDS_MATCH_MANIFEST: shards_match_manifest(made.url),
            FEW_REJECTS: few_rejects(made.rejects, made.samples, recipe.corpus.max_reject_fraction),
            # Images without a class do no harm where the prior is not trained on them.
            CLASSES_FOR_PRIOR: classes_for_prior(made.url, recipe) if _is_for_prior(run) else "",
        },
    )


def _is_for_prior(run: StageRun) -> bool:
    return run.split == "train" and not isinstance(run.recipe.corpus, OtherCorpus)


def shards_match_manifest(corpus_url: str) -> str:
    """Stat every shard: cheap enough for each run (`flextok verify` hashes them)."""
    from flextok import storage
    from flextok.data.corpus.reader import Corpus

    corpus = Corpus.open(corpus_url)
    wrong = []
    for shard in corpus.shards:
        fs, path = storage.filesystem(shard.url)
        found = fs.size(path) if fs.exists(path) else None
        if found != shard.bytes:
            wrong.append(f"{shard.name}: expected {shard.bytes} bytes, found {found}")
    return "; ".join(wrong[:3])


def few_rejects(rejects: int, samples: int, most: float) -> str:
    """Warn long before so many images are rejected that sharding fails."""
    share = rejects / max(rejects + samples, 1)
    if share <= FEW * most:
        return ""
    return (
        f"{rejects} of {rejects + samples} images ({share:.2%}) could not be used, {most:.2%} would end the sharding; "
        "rejects.parquet names them"
    )


def classes_for_prior(corpus_url: str, recipe: Recipe) -> str:
    """Count samples without a class: a prior over classes would refuse them, only hours later."""
    from flextok.data.corpus.reader import Corpus

    if recipe.prior.model.condition != "class":
        return ""
    labels = Corpus.open(corpus_url).index("label")["label"]
    if not labels.null_count():
        return ""
    return (
        f"{labels.null_count()} of {len(labels)} samples have no class, and the prior will refuse them; "
        "label the corpus or set prior.model.condition to text or none"
    )
