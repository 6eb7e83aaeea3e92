"""Token shards by Ray Data, and the prior over them by Ray Train."""

from typing import TYPE_CHECKING

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


def train_the_prior(run: StageRun) -> Made:
    """Train the prior, validated on the tokens of the val split."""
    from flextok.train.prior import train_prior

    made = train_prior(
        run.recipe.prior,
        run.latest("token_shards", "train"),
        run.latest("token_shards", "val"),
        run.workspace.checkpoints("prior"),
        run.recipe.compute,
    )
    return Made(made.digest, made.url, made.metrics)


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
