"""Images drawn from the prior: token rows in the token-shard schema, and their pictures at each K."""

import concurrent.futures
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flextok import storage
from flextok.data.images import read_png, to_png
from flextok.data.tokens import (
    ContentHash,
    TokenMeta,
    token_schema,
    token_table,
    write_token_manifest,
    write_token_shard,
)
from flextok.digests import digest_rows
from flextok.errors import UsageError
from flextok.evaluate.config import SamplingConfig, keep_counts
from flextok.evaluate.decoding import decode_ids, decoding_dtype, dtype_name
from flextok.evaluate.protocol import decoder_record, evaluation_device
from flextok.model.load import load_prior, load_tokenizer, prior_outline, tokenizer_outline
from flextok.model.priors.config import PriorConfig
from flextok.model.sampling.config import DrawConfig
from flextok.provenance import artifact_input, read_provenance
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.progress import track
from flextok.runtime.spread import spread
from flextok.runtime.storage_errors import storage_errors

SHARD = "000000"
FILE_THREADS = 8


@dataclass(frozen=True)
class SamplesResult:
    """Stored samples: a token store at `url`, with pictures in `images/k<K>/<key>.png`."""

    url: str
    digest: str
    num: int
    keep: list[int]


@storage_errors("sample from {prior_url} into {parent_url}")
def sample_images(
    prior_url: str,
    tokenizer_url: str,
    parent_url: str,
    config: SamplingConfig,
    class_names: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    compute: ComputeConfig | None = None,
) -> SamplesResult:
    """Draw `config.samples.num` token rows and decode each at every K, into `parent_url/<digest>/`.

    Here or, where `compute` has the address of a cluster, by workers on its nodes.

    A class-conditional prior gets class i % C for image i, so that classes are equally frequent; a text-conditional
    one gets `texts` in turn. The ids of one draw are decoded at every K: a shorter sequence is a prefix of a longer
    one. The digest covers the ids and all that decides the pictures.
    """
    config = config.part(SamplingConfig)
    device = evaluation_device(compute)
    dtype = decoding_dtype(config, device)
    prior, prior_digest = prior_outline(prior_url)
    tokenizer = tokenizer_outline(tokenizer_url)
    if prior.tokenizer not in ("", tokenizer.digest):
        raise UsageError(
            f"expected the tokenizer {prior.tokenizer[:12]} that prior {prior_url} was trained for, "
            f"found {tokenizer.digest[:12]}; train the prior on this tokenizer's tokens"
        )
    settings = config.samples
    keeps = keep_counts(settings.keep or config.keep, prior.num_tokens)
    condition = Condition.of(prior, settings.num, class_names, texts)
    keys = [f"{index:06d}" for index in range(settings.num)]
    ids = _draw(prior_url, condition, config, device, compute)
    recipe = {
        "keep": keeps,
        "decoder": decoder_record(tokenizer, config, dtype_name(dtype)),
        "sampler": {
            **{name: value for name, value in settings.content().items() if name not in ("keep", "guidance")},
            "prior_guidance": settings.guidance,
            "seed": config.seed,
            "labels": condition.rule,
        },
    }
    meta = TokenMeta(
        tokenizer=tokenizer.digest,
        vocab_size=prior.vocab_size,
        num_tokens=prior.num_tokens,
        codebooks=prior.codebooks,
        preprocess={"size": tokenizer.config.image_size, "sampled": {"prior": prior_digest, **recipe}},
    )
    sides = [tokenizer.config.image_size] * settings.num
    columns = {"key": keys, "label": condition.labels, "text": condition.texts, "width": sides, "height": sides}
    table = token_table(token_schema(meta), ids, columns)
    content = ContentHash(meta)
    content.update(table)
    url = storage.join(parent_url, digest_rows([(SHARD, len(keys), content.hexdigest())]))
    with spread("a decoding worker", SampleDecoder, (tokenizer_url, config, keeps, device, dtype), compute) as decode:
        _write_pictures(url, keys, keeps, decode(_in_batches(keys, ids, config.batch_size)))
    record = write_token_shard(storage.join(url, f"{SHARD}.parquet"), table.schema, [table])
    inputs = [artifact_input(prior_url), artifact_input(tokenizer_url)]
    digest = write_token_manifest(url, "samples", [record], meta, inputs, recipe)
    return SamplesResult(url, digest, settings.num, keeps)


def open_samples(url: str) -> tuple[SamplesResult, dict[str, Any]]:
    """Stored samples and the settings they were drawn with; raises UsageError when the folder holds something else."""
    block = read_provenance(url)
    if block["kind"] != "samples":
        raise UsageError(f"expected samples in {url}, found {block['kind']}")
    rows = storage.read_json(storage.join(url, "manifest.json"))["counts"]["rows"]
    return SamplesResult(url, block["digest"], rows, block["recipe"]["keep"]), block["recipe"]


def image_url(url: str, keep: int, key: str) -> str:
    """Where the picture of sample `key` at `keep` tokens is."""
    return storage.join(url, "images", f"k{keep:03d}", f"{key}.png")


def read_images(url: str, keep: int, keys: Sequence[str]) -> np.ndarray:
    """The pictures of samples at `keep` tokens, uint8 [B, H, W, 3]."""
    with concurrent.futures.ThreadPoolExecutor(FILE_THREADS) as pool:
        return np.stack(list(pool.map(lambda key: read_png(storage.read_bytes(image_url(url, keep, key))), keys)))


@dataclass(frozen=True)
class Condition:
    """What steers each sample, and how it was chosen."""

    rule: str
    labels: list[int | None]
    texts: list[str | None]

    @classmethod
    def of(
        cls, prior: PriorConfig, num: int, class_names: Sequence[str] | None, texts: Sequence[str] | None
    ) -> "Condition":
        if prior.condition == "class":
            labels = [index % prior.num_classes for index in range(num)]
            names = list(class_names or [])
            found = [names[label] if label < len(names) else None for label in labels]
            return cls("class i % C for image i: equally frequent", [*labels], found)
        if prior.condition == "text":
            if not texts:
                raise UsageError("expected texts for a prior conditioned on captions, found none; give some captions")
            return cls("the given texts in turn", [None] * num, [texts[index % len(texts)] for index in range(num)])
        return cls("no condition", [None] * num, [None] * num)


def _draw(
    prior_url: str, condition: Condition, config: SamplingConfig, device: str, compute: ComputeConfig | None
) -> np.ndarray:
    """The ids of all samples, int64 [N, L] or [N, L, C]."""
    parts = []
    with (
        track("sample", config.samples.num, "images") as task,
        spread("a sampling worker", Sampler, (prior_url, condition, config, device), compute) as sample,
    ):
        for ids in sample(batch_ranges(config.samples.num, config.batch_size)):
            parts.append(ids)
            task.advance(len(ids))
    return np.concatenate(parts)


class Sampler:
    """What a worker holds to draw the ids of some samples."""

    def __init__(self, prior_url: str, condition: Condition, config: SamplingConfig, device: str):
        self._prior = load_prior(prior_url, device)
        self._condition, self._config = condition, config

    @torch.inference_mode()
    def __call__(self, rows: range) -> np.ndarray:
        """Those of the samples `rows`, int64 [B, L] or [B, L, C]."""
        ids = self._prior.generate(
            labels=[label or 0 for label in self._condition.labels[rows.start : rows.stop]],
            text=[text or "" for text in self._condition.texts[rows.start : rows.stop]],
            num=len(rows),
            seed=self._config.seed,
            sample_ids=rows,
            **dict(self._config.samples.part(DrawConfig)),
        )
        return ids.cpu().numpy()


def _write_pictures(
    url: str, keys: Sequence[str], keeps: Sequence[int], decoded: Iterator[tuple[Sequence[str], list[list[bytes]]]]
) -> None:
    """Write what SampleDecoders give for all of `keys` to `image_url`."""
    with (
        track("decode samples", len(keys) * len(keeps), "images") as task,
        concurrent.futures.ThreadPoolExecutor(FILE_THREADS) as pool,
    ):
        for names, pictures in decoded:
            for keep, files in zip(keeps, pictures, strict=True):
                list(pool.map(storage.write_bytes, [image_url(url, keep, name) for name in names], files))
                task.advance(len(names))


def _in_batches(keys: Sequence[str], ids: np.ndarray, size: int) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    for rows in batch_ranges(len(keys), size):
        yield keys[rows.start : rows.stop], ids[rows.start : rows.stop]


class SampleDecoder:
    """What a worker holds to make pictures of samples."""

    def __init__(
        self, tokenizer_url: str, config: SamplingConfig, keeps: Sequence[int], device: str, dtype: torch.dtype
    ):
        self._tokenizer = load_tokenizer(tokenizer_url, device, dtype)
        self._config, self._keeps = config, keeps

    def __call__(self, item: tuple[Sequence[str], np.ndarray]) -> tuple[Sequence[str], list[list[bytes]]]:
        """Of samples (keys, ids) the keys again and, for each K, their PNG files."""
        keys, ids = item
        pictures = (
            decode_ids(self._tokenizer, torch.from_numpy(ids), keep, keys, self._config) for keep in self._keeps
        )
        return keys, [list(map(to_png, images)) for images in pictures]


def batch_ranges(count: int, size: int) -> Iterator[range]:
    """0..count - 1, `size` at a time."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
