"""How many tokens each image would have needed, from an evaluation's own numbers, and how near length policies come to it."""

from typing import Any

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.data.images import to_png
from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.evaluate.config import OracleConfig
from flextok.evaluate.images import stream_images
from flextok.evaluate.results import IMAGES, Metric, Series, read_evaluation, standard_error, statistic
from flextok.metrics.base import IMAGE_METRICS
from flextok.metrics.lengths import ORACLE, Oracle, gap, oracle
from flextok.provenance import read_provenance

BATCH = 64
POLICY = "policy"


def length_statistics(
    config: OracleConfig, reconstruction_url: str, tokens_url: str, corpus_url: str, image_px: int
) -> tuple[list[Metric], list[Series]]:
    """Numbers of the oracle for `config`'s threshold, of each fixed K and of the lengths in the token store at `tokens_url`
    beside it, and the curve `oracle_share_by_tokens`. Nothing is decoded: the metrics of each image are those stored.

    Its correlation is with the PNG bytes of the images of the corpus, cropped to `image_px`; there is none where all images
    need the same. Raises UsageError where the metric was not measured.
    """
    values, keys, keeps, protocol = _measured(config, reconstruction_url)
    found = oracle(values, keeps, IMAGE_METRICS[config.metric], config.threshold)
    protocol = {**protocol, "oracle": {**config.model_dump(mode="json"), "candidates": keeps, "rule": ORACLE}}
    tokens = statistic("oracle_tokens", float(found.tokens_N.mean()), protocol)
    metrics = [
        Metric(tokens.name, tokens.value, tokens.protocol, None, standard_error(found.tokens_N)),
        statistic("oracle_reached", float(found.reached_N.mean()), protocol),
    ]
    for keep in keeps:
        metrics += _gap("fixed", np.full(len(keys), keep), found, {**protocol, "keep": keep}, keep)
    metrics += _of_policy(keys, found, tokens_url, protocol)
    if len(np.unique(found.tokens_N)) > 1:
        size = _png_bytes(corpus_url, keys, image_px)
        ranked: Any = spearmanr(found.tokens_N, size)
        metrics.append(statistic("oracle_complexity_correlation", float(ranked.statistic), protocol))
    shares = [float((found.tokens_N == keep).mean()) for keep in keeps]
    about = {
        **protocol,
        "definition": "share of images that need so many tokens; at the largest K also those not reached",
    }
    return metrics, [Series("oracle_share_by_tokens", "tokens kept, K", keeps, shares, about)]


def _measured(config: OracleConfig, url: str) -> tuple[np.ndarray, list[str], list[int], dict[str, Any]]:
    """The metric's values [N, K] of each image at each K, keys, the K, and the protocol but for K."""
    items = [item for item in read_evaluation(url).metrics if item["name"] == config.metric and item["k"] is not None]
    if not items:
        raise UsageError(
            f"expected {config.metric} in {url} for report.oracle, found it was not measured; name it in evaluation.metrics"
        )
    with storage.open_read(storage.join(url, IMAGES)) as file:
        table = pl.read_parquet(file)
    wide = table.filter(pl.col("k") > 0).pivot("k", index="key", values=config.metric)
    keeps = sorted(int(name) for name in wide.columns if name != "key")
    dropped = ("keep", "definition")
    protocol = {name: value for name, value in items[0]["protocol"].items() if name not in dropped}
    return wide.select(map(str, keeps)).to_numpy(), wide["key"].to_list(), keeps, protocol


def _gap(policy: str, tokens_N: np.ndarray, found: Oracle, protocol: dict[str, Any], keep: int | None) -> list[Metric]:
    over, short = gap(tokens_N, found)
    return [
        statistic(f"{policy}_over_oracle", over, protocol, keep),
        statistic(f"{policy}_short_of_oracle", short, protocol, keep),
    ]


def _of_policy(keys: list[str], found: Oracle, tokens_url: str, protocol: dict[str, Any]) -> list[Metric]:
    """Of the lengths that are stored; nothing where images have several views, whose lengths are those of other crops."""
    store = TokenStore.open(tokens_url)
    if store.has_views:
        return []
    stored = dict(zip(store.keys(), store.lengths().tolist(), strict=True))
    lacking = [key for key in keys if key not in stored]
    if lacking:
        raise UsageError(
            f"expected tokens of image {lacking[0]} in {tokens_url}, found none; give those of the same split"
        )
    tokens_N = np.array([stored[key] for key in keys])
    length = read_provenance(tokens_url)["recipe"].get("length", {"kind": "all"})
    record = {**protocol, "tokens": store.digest, "length": length}
    return [statistic("policy_tokens", float(tokens_N.mean()), record), *_gap(POLICY, tokens_N, found, record, None)]


def _png_bytes(corpus_url: str, keys: list[str], image_px: int) -> list[int]:
    """Of each image, in the order of `keys`."""
    sizes = {
        key: len(to_png(image))
        for batch in stream_images(Corpus.open(corpus_url), keys, image_px, BATCH)
        for key, image in zip(batch.keys, batch.images_BHWC, strict=True)
    }
    return [sizes[key] for key in keys]
