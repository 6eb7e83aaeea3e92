"""Checks that ride on assets. Integrity blocks what depends on the asset; quality only warns, it is a judgement."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

SHARDS_MATCH_MANIFEST = "shards_match_manifest"
CLASSES_FOR_PRIOR = "classes_for_prior"
ROWS_MATCH_IMAGES = "rows_match_images"
MORE_TOKENS_ARE_CLOSER = "more_tokens_are_closer"
CLOSER_THAN_RANDOM = "closer_than_random_tokens"

# Stage -> name, whether it blocks, what holds.
_SPECS: dict[str, list[tuple[str, bool, str]]] = {
    "image_shards": [
        (SHARDS_MATCH_MANIFEST, True, "Every shard is there with the bytes its manifest says."),
        (CLASSES_FOR_PRIOR, False, "Every sample has a class, if the prior is to be trained on classes."),
    ],
    "token_shards": [
        (ROWS_MATCH_IMAGES, True, "Every image that was not rejected has tokens of the latest tokenizer.")
    ],
    "reconstructions": [(MORE_TOKENS_ARE_CLOSER, False, "All tokens give a smaller pixel error than one.")],
    "fid": [(CLOSER_THAN_RANDOM, False, "Samples are closer to the val set than images of random tokens.")],
}


def check_specs(stage: str, key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The checks that a stage reports with its result."""
    return [
        dg.AssetCheckSpec(name, asset=key, blocking=blocking, description=description)
        for name, blocking, description in _SPECS.get(stage, [])
    ]


def shards_match_manifest(corpus_url: str) -> dg.AssetCheckResult:
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
    return _result(SHARDS_MATCH_MANIFEST, not wrong, "; ".join(wrong[:3]), blocking=True)


def classes_for_prior(corpus_url: str, condition: str) -> dg.AssetCheckResult:
    """Count samples without a class: a prior over classes would refuse them, only hours later."""
    from flextok.data.corpus.reader import Corpus

    problem = ""
    if condition == "class":
        labels = Corpus.open(corpus_url).index("label")["label"]
        if labels.null_count():
            problem = (
                f"{labels.null_count()} of {len(labels)} samples have no class, and the prior will refuse them; "
                "label the corpus or set prior.model.condition to text or none"
            )
    return _result(CLASSES_FOR_PRIOR, not problem, problem)


def rows_match_images(tokens_url: str, expected_rows: int, tokenizer: str) -> dg.AssetCheckResult:
    """Read the token store's footers: all rows are there, of the tokenizer with this digest."""
    from flextok.data.tokens import TokenStore

    tokens = TokenStore.open(tokens_url)
    problem = ""
    if len(tokens) != expected_rows:
        problem = f"expected {expected_rows} rows, found {len(tokens)}"
    elif tokens.tokenizer != tokenizer:
        problem = f"expected tokens of tokenizer {tokenizer[:12]}, found those of {tokens.tokenizer[:12]}"
    return _result(ROWS_MATCH_IMAGES, not problem, problem, blocking=True)


def more_tokens_are_closer(mae_by_keep: Mapping[int, float]) -> dg.AssetCheckResult:
    """Compare the pixel errors at the fewest and the most tokens."""
    fewest, most = min(mae_by_keep), max(mae_by_keep)
    problem = ""
    if fewest != most and mae_by_keep[most] >= mae_by_keep[fewest]:
        problem = (
            f"mae is {mae_by_keep[fewest]:.4g} at K={fewest} and {mae_by_keep[most]:.4g} at K={most}: "
            "the tokenizer has not learned to use its tokens; train it longer"
        )
    return _result(MORE_TOKENS_ARE_CLOSER, not problem, problem)


def closer_than_random(samples: Mapping[int, float], random: Mapping[int, float]) -> dg.AssetCheckResult:
    """Compare the distances of samples with those of random tokens, at the most tokens."""
    most = max(samples)
    problem = ""
    if samples[most] >= random[most]:
        problem = (
            f"the distance of samples at K={most} is {samples[most]:.4g}, that of random tokens {random[most]:.4g}: "
            "the prior has not learned; train it longer"
        )
    return _result(CLOSER_THAN_RANDOM, not problem, problem)


def _result(name: str, passed: bool, problem: str, blocking: bool = False) -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
    metadata: dict[str, Any] = {"problem": problem} if problem else {}
    return dg.AssetCheckResult(
        check_name=name, passed=passed, severity=severity, description=problem, metadata=metadata
    )
