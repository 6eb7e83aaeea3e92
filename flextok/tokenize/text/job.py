"""Bulk encoding of captions on Ray Data: the shards of a corpus are the rows, as in a tokenization.

What holds of tokens holds here: one file for each shard or none, the manifest last, a run that ends early is resumed by
the same command, and the features do not depend on actors or timing.
"""

from dataclasses import asdict, dataclass

import torch

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.data.text_features.store import read_manifest, write_feature_manifest
from flextok.data.tokens.writer import MANIFEST
from flextok.errors import IntegrityError
from flextok.model.text import text_encoder
from flextok.provenance import artifact_input
from flextok.runtime.cluster import ensure_ray
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.lock import locked
from flextok.runtime.members import pack_members
from flextok.runtime.nodes import cluster_nodes
from flextok.runtime.storage_errors import storage_errors
from flextok.tokenize.fitness import Proof
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.scheduler import choose_workers
from flextok.tokenize.shards import MadeShards, check_no_mix, make_shards, remove_strays, run_shown
from flextok.tokenize.text.actor import CaptionEncoder
from flextok.tokenize.text.tasks import EncoderSpec, TextTask, check_destination, finished_text, is_written, text_tasks


@dataclass(frozen=True)
class TextSummary:
    """What a finished encoding made."""

    url: str
    digest: str
    images: int
    shards: int
    skipped: int
    """Shards that were finished already."""
    bytes: int


def encoder_spec(name: str) -> EncoderSpec:
    """Digest and width of a text encoder, which is loaded for it; raises UsageError where it cannot be had."""
    encoder = text_encoder(name, torch.device("cpu"))
    return EncoderSpec(name, encoder.digest, encoder.width)


@storage_errors("encode the captions of {corpus_url} into {dest}", keeps="finished shards are kept")
def encode_captions(
    corpus_url: str, encoder: EncoderSpec, dest: str, compute: ComputeConfig, progress: bool = True
) -> TextSummary:
    """Encode all captions of the corpus into `dest`; finished shards are kept, whatever else is there is made again.

    Raises UsageError where corpus or destination cannot be used; FlextokError when another job works on `dest`, or a
    shard could not be encoded. The shards that were finished then stay, and the same command resumes with the rest.
    """
    dest = storage.absolute(dest)
    corpus = Corpus.open(corpus_url)
    with locked(dest):
        check_destination(dest, encoder)
        tasks = text_tasks(corpus, encoder, dest)

        def make(todo: list[TextTask], _finished: object) -> list[ShardOutcome]:
            return _run(todo, encoder, dest, compute, progress, corpus.num_samples)

        made = make_shards(dest, tasks, finished_text, make, "encoded")
        _check_counts(made)
        check_no_mix(tasks, is_written)
        remove_strays(dest, tasks, ".safetensors")
        digest = _commit(corpus, encoder, dest, made)
    records = made.records
    return TextSummary(
        url=dest,
        digest=digest,
        images=sum(record.rows for record in records),
        shards=len(records),
        skipped=len(made.finished),
        bytes=sum(record.bytes for record in records),
    )


def _run(
    tasks: list[TextTask], encoder: EncoderSpec, dest: str, compute: ComputeConfig, progress: bool, total: int
) -> list[ShardOutcome]:
    if not tasks:
        return []
    ensure_ray(compute.address, compute.num_cpus)
    compute = compute.model_copy(update={"threads": 1})
    workers = choose_workers([task.source.samples for task in tasks], compute, cluster_nodes(compute.resources))
    arguments = {
        "encoder": encoder.name,
        "digest": encoder.digest,
        "device": workers.device,
        "members": pack_members(),
        "proof": Proof.wanted(storage.join(tasks[0].corpus, MANIFEST), dest),
    }
    title = "encoding captions" if progress else None
    return run_shown(title, total, tasks, CaptionEncoder, arguments, workers)


def _check_counts(made: MadeShards[TextTask]) -> None:
    rows = {record.shard: record.rows for record in made.records}
    for task in made.tasks:
        if rows[task.name] != task.source.samples:
            raise IntegrityError(
                f"expected {task.source.samples} images in {task.dest}, found {rows[task.name]}; run the same command again"
            )


def _commit(corpus: Corpus, encoder: EncoderSpec, dest: str, made: MadeShards[TextTask]) -> str:
    """Write the manifest, unless the one that is there says the same; gives the digest of the store."""
    records = sorted(made.records, key=lambda record: record.shard)
    if not made.outcomes and storage.exists(storage.join(dest, MANIFEST)):
        manifest = read_manifest(dest)
        from_same = manifest["provenance"]["inputs"][0]["digest"] == corpus.digest
        if from_same and manifest["shards"] == [asdict(record) for record in records]:
            return manifest["digest"]
    recipe = {"encoder": encoder.name, "encoder_digest": encoder.digest}
    return write_feature_manifest(dest, records, made.tasks[0].meta, [artifact_input(corpus.url)], recipe)
