"""Token shards and features of captions by Ray Data, and the prior over them by Ray Train."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flextok.errors import UsageError
from pipelines.partitions import partition_key
from pipelines.recipe import Recipe
from pipelines.stage import Made, StageRun

if TYPE_CHECKING:
    from flextok.evaluate.vocabulary import VocabularyUse

ROWS_MATCH_IMAGES = "rows_match_images"
CODEBOOK_IN_USE = "codebook_in_use"
COLLAPSED = 0.1
"""Distinct ids, as a part of what ids drawn uniformly would have."""


def tokenize_shards(run: StageRun) -> Made:
    """One Parquet file of tokens for each image shard of a split."""
    from flextok.data.corpus.reader import Corpus
    from flextok.evaluate.vocabulary import vocabulary_use
    from flextok.provenance import read_provenance
    from flextok.tokenize.config import TokenizeConfig
    from flextok.tokenize.job import tokenize_corpus

    recipe = run.recipe
    shards_url, tokenizer_url = run.latest("image_shards", run.split), run.latest("tokenizer")
    tokenizer = read_provenance(tokenizer_url)["digest"]
    dest = run.workspace.tokens(recipe.corpus.name, run.split, tokenizer)
    made = tokenize_corpus(shards_url, tokenizer_url, dest, recipe.tokens.part(TokenizeConfig), recipe.compute)
    expected = (Corpus.open(shards_url).num_samples - made.rejects) * len(recipe.tokens.views)
    numbers = {"dagster/row_count": made.rows, "shards": made.shards, "images_per_s": made.images_per_s}
    use = vocabulary_use(made.url)
    if use is not None:
        numbers |= {"vocabulary_use": float(f"{use.share:.3g}"), "vocabulary_use_rows": use.rows}
    problems = {
        ROWS_MATCH_IMAGES: rows_match_images(made.url, expected, tokenizer),
        CODEBOOK_IN_USE: codebook_in_use(use),
    }
    return Made(made.digest, made.url, numbers, problems)


def reads_stored_text(recipe: Recipe) -> bool:
    """Whether the prior reads captions by an encoder whose features are worth storing."""
    return recipe.prior.model.has_stored_text


def encode_the_captions(run: StageRun) -> Made:
    """One file of features for each image shard of a split."""
    from flextok.tokenize.text.job import encode_captions, encoder_spec

    encoder = encoder_spec(run.recipe.prior.model.text_encoder)
    dest = run.workspace.text_features(run.recipe.corpus.name, run.split, encoder.digest)
    made = encode_captions(run.latest("image_shards", run.split), encoder, dest, run.recipe.compute)
    return Made(made.digest, made.url, {"dagster/row_count": made.images, "shards": made.shards})


def partitions_of_tokens(recipe: Recipe) -> tuple[str, ...]:
    """What the prior is trained and validated on."""
    trained = (partition_key(corpus, split) for corpus, split, _ in recipe.prior_corpora())
    return (*trained, partition_key(recipe.corpus.name, "val"))


def train_the_prior(run: StageRun) -> Made:
    """Train the prior on the corpora that the recipe names, validated on the val split of the profile's own."""
    from flextok.train.config import PriorRecipe
    from flextok.train.prior import train_prior

    corpora = run.recipe.prior_corpora()
    if run.recipe.prior.model.condition == "class":
        _require_same_classes(run, [(name, split) for name, split, _ in corpora])
    read = [*((name, split) for name, split, _ in corpora), (run.recipe.corpus.name, "val")]
    tokens = {(name, split): run.latest("token_shards", split, name) for name, split in read}
    stored = reads_stored_text(run.recipe)
    made = train_prior(
        run.recipe.prior.part(PriorRecipe),
        {tokens[name, split]: weight for name, split, weight in corpora},
        tokens[run.recipe.corpus.name, "val"],
        run.workspace.checkpoints("prior"),
        run.recipe.compute,
        {tokens[name, split]: run.latest("text_features", split, name) for name, split in read} if stored else None,
    )
    return Made(made.digest, made.url, made.metrics)


def _require_same_classes(run: StageRun, corpora: Sequence[tuple[str, str]]) -> None:
    """Raises UsageError where a label means another class in one of `corpora` (name, split) than in the profile's own."""
    from flextok.data.corpus.reader import Corpus

    own = run.recipe.corpus.name
    others = [(name, split) for name, split in corpora if name != own]
    if not others:
        return
    classes = Corpus.open(run.latest("image_shards", "train")).classes
    for name, split in others:
        if Corpus.open(run.latest("image_shards", split, name)).classes != classes:
            raise UsageError(
                f"expected corpora of the same classes for a class-conditional prior, found that those of {own} and "
                f"{name} differ; set prior.model.condition to text or none, or take {name} out of prior.corpora"
            )


def rows_match_images(tokens_url: str, expected_rows: int, tokenizer: str) -> str:
    """Read the token store's footers: all rows are there, of the tokenizer with this digest."""
    from flextok.data.tokens import TokenStore

    tokens = TokenStore.open(tokens_url)
    if len(tokens) != expected_rows:
        return f"expected {expected_rows} rows, found {len(tokens)}"
    if tokens.tokenizer != tokenizer:
        return f"expected tokens of tokenizer {tokenizer[:12]}, found those of {tokens.tokenizer[:12]}"
    return ""


def codebook_in_use(use: "VocabularyUse | None") -> str:
    """Judge the distinct ids of the first rows: a codebook that collapsed shows there."""
    if use is None or use.share_of_uniform >= COLLAPSED:
        return ""
    return (
        f"{use.used} of {use.vocabulary:,} ids are in use in the first {use.rows:,} rows, {use.share_of_uniform:.1%} of what "
        "ids drawn uniformly have: the codebook has collapsed; train the tokenizer longer or with fewer levels"
    )
