"""Whether a tokenizer was trained on the images that it is judged by."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl

from flextok import storage
from flextok.data.corpus.reader import Corpus, read_indexes
from flextok.errors import FlextokError, UsageError
from flextok.provenance import read_provenance, resolve_input
from flextok.runtime.storage_errors import telling_storage_errors

READERS = 8
COMPARED = "sha256 of the stored images"


def held_out_record(tokenizer_url: str, corpus: Corpus, keys: Sequence[str], allowed: bool) -> dict[str, Any]:
    """For the protocol: how many of the corpus' images `keys` the tokenizer or its autoencoder was trained on.

    `{in_training, compared_by}`, and `not_compared` with the digests of training corpora that are not within reach: of
    those only the digest is compared. A checkpoint that does not say what it was trained on (an imported one) gives
    `{in_training: "unknown"}`. Raises UsageError where there are any and that is not `allowed`.
    """
    trained_on = list(_training_corpora(storage.absolute(tokenizer_url)))
    if not trained_on:
        return {"in_training": "unknown"}
    images = corpus.index("key", "sha256").filter(pl.col("key").is_in(list(keys)))
    gone = sorted({node["digest"] for node in trained_on if not node["found"]} - {corpus.digest})
    if corpus.digest in {node["digest"] for node in trained_on}:
        seen = len(images)
    else:
        there = {node["digest"]: node["uri"] for node in trained_on if node["found"]}
        seen = images["sha256"].is_in(_common(images["sha256"], list(there.values()))).sum()
    if seen and not allowed:
        raise UsageError(
            f"expected images that the tokenizer was not trained on, found that it was on {seen:,} of the {len(images):,} "
            f"in {corpus.url}; name another split or corpus, or set evaluation.allow_training_images=true"
        )
    record = {"in_training": seen, "compared_by": COMPARED}
    return {**record, "not_compared": gone} if gone else record


def _training_corpora(url: str) -> Iterator[dict[str, Any]]:
    """`{digest, uri, found}` of the corpora that the checkpoint at `url` was trained on, and those that it stands on."""
    for item in read_provenance(url)["inputs"]:
        place = resolve_input(item["uri"], url)
        found = _is_there(place, item["digest"])
        if item["kind"] == "corpus":
            yield {"digest": item["digest"], "uri": place, "found": found}
        elif found:
            yield from _training_corpora(place)


def _is_there(url: str, digest: str) -> bool:
    try:
        with telling_storage_errors(f"read {url}"):
            return read_provenance(url)["digest"] == digest
    except FlextokError:
        return False


def _common(hashes: pl.Series, corpora: Sequence[str]) -> pl.Series:
    """Those of `hashes` that are in one of the corpora, whose indexes are read a few shards at a time."""

    def common(place: tuple[str, str]) -> pl.Series:
        found = read_indexes(place[0], [place[1]], ["sha256"])["sha256"]
        return found.filter(found.is_in(hashes.implode()))

    places = [(url, shard.name) for url in corpora for shard in Corpus.open(url).shards]
    with ThreadPoolExecutor(READERS) as pool:
        return pl.concat([hashes.clear(), *pool.map(common, places)]).unique().implode()
