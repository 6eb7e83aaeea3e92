"""Images drawn from the prior: token rows in the token-shard schema, and their pictures at each K."""

import concurrent.futures
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flextok import storage
from flextok.data.images import read_png
from flextok.digests import digest_rows
from flextok.errors import UsageError
from flextok.evaluate.config import SamplingConfig, SetComparisonConfig
from flextok.evaluate.parts import PARTS
from flextok.evaluate.samples.condition import Condition
from flextok.evaluate.samples.job import (
    SamplesJob,
    check_destination,
    commit,
    committed,
    copy_shards,
    decode,
    draw,
    plan_samples,
)
from flextok.evaluate.samples.layout import FILE_THREADS, image_url
from flextok.provenance import read_provenance
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.lock import locked
from flextok.runtime.storage_errors import storage_errors

KEEPS = "finished shards are kept"


@dataclass(frozen=True)
class SamplesResult:
    """Stored samples: a token store at `url`, with pictures of the first of them in `images/k<K>/<key>.png`."""

    url: str
    digest: str
    num: int
    keep: list[int]
    pictures: int
    """Samples that have pictures."""

    def require_pictures(self, images: int, what: str) -> None:
        """Raises UsageError where fewer than `images` samples have pictures, which `what` needs."""
        if self.pictures < images:
            raise UsageError(
                f"expected pictures of {images} samples for {what}, found those of {self.pictures} in {self.url}; draw them "
                "with evaluation.samples.pictures=null (flextok generate: --pictures)"
            )


@storage_errors("sample from {prior_url} into {parent_url}", keeps=KEEPS)
def sample_images(
    prior_url: str,
    tokenizer_url: str,
    parent_url: str,
    config: SamplingConfig,
    class_names: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    compute: ComputeConfig | None = None,
    sets: SetComparisonConfig | None = None,
) -> SamplesResult:
    """Draw `config.samples.num` token rows and decode each at every K, into `parent_url/<digest>/`.

    Here where they are one shard or `compute` is None, else by actors on this machine's or a cluster's Ray. A run that ended
    early is resumed: what was drawn lies in `parent_url/.parts/` until all is, and the digest is known.

    A class-conditional prior gets class i % C for image i, so that classes are equally frequent; a text-conditional
    one gets `texts` in turn. The ids of one draw are decoded at every K: a shorter sequence is a prefix of a longer
    one. The digest covers the ids and all that decides the pictures. Where not all of these are kept, features for the
    metrics of `sets` are.
    """
    job = plan_samples(
        prior_url, tokenizer_url, config, lambda prior: Condition.of(prior, class_names, texts), compute, sets
    )
    parent_url = storage.absolute(parent_url)
    work_url = storage.join(parent_url, PARTS, job.fingerprint)
    with locked(work_url):
        made = draw(job, work_url)
        digest = digest_rows((record.shard, record.rows, record.content_sha256) for record in made.records)
        url = storage.join(parent_url, digest)
        with locked(url):
            copy_shards(job, made, url)
            decode(job, url, made.records)
            commit(job, url, made.records)
    storage.remove(work_url)
    return SamplesResult(url, digest, job.num, job.keeps, job.shown)


@storage_errors("sample from {job.prior_url} into {dest}", keeps=KEEPS)
def sample_into(job: SamplesJob, dest: str) -> SamplesResult:
    """Make the samples of `job` in the folder `dest`; finished shards are kept.

    Raises UsageError where it holds anything but samples of this job.
    """
    dest = storage.absolute(dest)
    with locked(dest):
        check_destination(job, dest)
        made = draw(job, dest)
        changed = decode(job, dest, made.records) or bool(made.outcomes)
        digest = None if changed else committed(dest, made.records)
        digest = digest or commit(job, dest, made.records)
    return SamplesResult(dest, digest, job.num, job.keeps, job.shown)


def open_samples(url: str) -> tuple[SamplesResult, dict[str, Any]]:
    """Stored samples and the settings they were drawn with; raises UsageError when the folder holds something else."""
    block = read_provenance(url)
    if block["kind"] != "samples":
        raise UsageError(f"expected samples in {url}, found {block['kind']}")
    rows, recipe = storage.read_json(storage.join(url, "manifest.json"))["counts"]["rows"], block["recipe"]
    return SamplesResult(url, block["digest"], rows, recipe["keep"], recipe.get("pictures", rows)), recipe


def read_images(url: str, keep: int, keys: Sequence[str]) -> np.ndarray:
    """The pictures of samples at `keep` tokens, uint8 [B, H, W, 3]."""
    with concurrent.futures.ThreadPoolExecutor(FILE_THREADS) as pool:
        return np.stack(list(pool.map(lambda key: read_png(storage.read_bytes(image_url(url, keep, key))), keys)))
