"""Bulk tokenization on Ray Data: the shards of a corpus are the rows, actors holding the tokenizer map them.

Each row comes back as one Parquet file of the token store, visible when it is whole; the manifest is written last, when
every shard is there. A run that ends early, however it ends, is resumed by the same command.

For a given batch size the ids do not depend on actors or timing: batches are cut within a shard and always have one
shape. Another batch size, number of threads, machine or library may sum in another order and so round a latent that
lies on the edge of two ids the other way; the store's digest would show it.
"""

import dataclasses
import logging
import time
from collections.abc import Container

from flextok import storage
from flextok.data.corpus.reader import Corpus
from flextok.data.rejects import Reject, describe_rejects
from flextok.data.tokens import ShardRecord, read_manifest, read_shard_footer, write_token_manifest
from flextok.data.tokens.writer import MANIFEST
from flextok.errors import FlextokError, IntegrityError, UsageError
from flextok.model.load import TokenizerSpec, tokenizer_spec
from flextok.provenance import artifact_input
from flextok.runtime.cluster import ensure_ray
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.lock import locked
from flextok.runtime.members import pack_members
from flextok.runtime.nodes import beside_options, cluster_nodes
from flextok.runtime.storage_errors import storage_errors
from flextok.tokenize.actor import ShardTokenizer
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.estimate import DEFAULT_BATCH, search_batch_size, worth_trying
from flextok.tokenize.fitness import Proof
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.scheduler import Workers, choose_workers, innermost_message
from flextok.tokenize.shards import LISTED_FAULTS, check_no_mix, make_shards, remove_strays, run_shown
from flextok.tokenize.tasks import Finished, ShardTask, check_destination, finished_record, shard_tasks

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TokenizeSummary:
    """What a finished tokenization made: `rows + rejects * views == images * views` of the corpus."""

    url: str
    digest: str
    rows: int
    shards: int
    skipped: int
    """Shards that were finished already."""
    rejects: int
    images_per_s: float
    """Of this run, from the first shard's start to the last one's end; 0 when nothing was to do."""
    start_s: float
    """Seconds until the first actor began: Ray's start and the loading of the tokenizer."""
    peak_bytes: int
    """Most memory that an actor had in use."""


@storage_errors("tokenize {corpus_url} into {dest}", keeps="finished shards are kept")
def tokenize_corpus(
    corpus_url: str,
    tokenizer_url: str,
    dest: str,
    config: TokenizeConfig,
    compute: ComputeConfig,
    progress: bool = True,
) -> TokenizeSummary:
    """Tokenize every shard of the corpus into `dest`; finished shards are kept, whatever else is there is made again.

    Raises UsageError where corpus, tokenizer, settings or destination cannot be used; FlextokError when another job
    works on `dest`, a shard could not be tokenized, or more than the allowed share of images could not be decoded. The
    shards that were finished then stay, without a manifest, and the same command resumes with the rest.
    """
    dest = storage.absolute(dest)
    corpus = Corpus.open(corpus_url)
    spec = tokenizer_spec(tokenizer_url)
    with locked(dest):
        check_destination(dest, spec)
        return _tokenize(corpus, spec, dest, config, compute, progress)


def _tokenize(
    corpus: Corpus, spec: TokenizerSpec, dest: str, config: TokenizeConfig, compute: ComputeConfig, progress: bool
) -> TokenizeSummary:
    begun = time.time()
    tasks = shard_tasks(corpus, spec, dest, config)

    def make(todo: list[ShardTask], finished: dict[str, Finished]) -> list[ShardOutcome]:
        batch_size = config.batch_size or _earlier_batch_size(tasks, finished)
        return _run(todo, spec, dest, config, compute, batch_size, progress, corpus.num_samples)

    made = make_shards(dest, tasks, finished_record, make, "tokenized")
    records, rejects, outcomes = made.records, made.rejects, made.outcomes
    _judge_rejects(config, corpus, rejects)
    _check_counts(tasks, records, len(config.views))
    check_no_mix(tasks, lambda task: read_shard_footer(task.dest).meta.fingerprint == task.meta.fingerprint)
    remove_strays(dest, tasks, ".parquet")
    digest = _commit(corpus, spec, dest, config, tasks, records, rejects, changed=bool(outcomes))
    encoded = sum(outcome.record.rows for outcome in outcomes if outcome.record) / len(config.views)
    first = min((outcome.started for outcome in outcomes), default=begun)
    last = max((outcome.ended for outcome in outcomes), default=begun)
    return TokenizeSummary(
        url=dest,
        digest=digest,
        rows=sum(record.rows for record in records),
        shards=len(records),
        skipped=len(made.finished),
        rejects=len(rejects),
        images_per_s=encoded / (last - first) if outcomes else 0.0,
        start_s=first - begun,
        peak_bytes=max((outcome.peak_bytes for outcome in outcomes), default=0),
    )


def _run(
    tasks: list[ShardTask],
    spec: TokenizerSpec,
    dest: str,
    config: TokenizeConfig,
    compute: ComputeConfig,
    batch_size: int | None,
    progress: bool,
    total: int,
) -> list[ShardOutcome]:
    """Outcomes of all tasks, in the order in which they ended."""
    if not tasks:
        return []
    ensure_ray(compute.address, compute.num_cpus)
    workers = choose_workers([task.source.samples for task in tasks], compute, cluster_nodes(compute.resources))
    batch_size = batch_size or _find_batch_size(tasks, spec, config, workers)
    tasks = [dataclasses.replace(task, meta=dataclasses.replace(task.meta, batch_size=batch_size)) for task in tasks]
    arguments = {
        "tokenizer_url": spec.url,
        "digest": spec.digest,
        "config": config.model_dump(mode="json"),
        "batch_size": batch_size,
        "threads": workers.threads,
        "device": workers.device,
        "members": pack_members(),
        "proof": Proof.wanted(storage.join(tasks[0].corpus, MANIFEST), dest),
    }
    return run_shown("tokenizing" if progress else None, total, tasks, ShardTokenizer, arguments, workers)


def _earlier_batch_size(tasks: list[ShardTask], finished: Container[str]) -> int | None:
    """That of the shards which an earlier run finished, so that the whole store is as if made in one."""
    return next((read_shard_footer(task.dest).meta.batch_size for task in tasks if task.name in finished), None)


def _find_batch_size(tasks: list[ShardTask], spec: TokenizerSpec, config: TokenizeConfig, workers: Workers) -> int:
    """Found by trying where an actor would live, when the job is large enough for that to pay."""
    if not worth_trying(sum(task.source.samples for task in tasks)):
        return DEFAULT_BATCH
    import ray
    from ray.exceptions import RayError

    options = beside_options(workers.beside)
    search = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus, **options)(search_batch_size)
    try:
        return ray.get(search.remote(spec.url, config.dtype, workers, pack_members()))
    except RayError as error:
        raise FlextokError(
            f"expected to find a batch size, found: {innermost_message(error)}; give batch_size"
        ) from error


def _judge_rejects(config: TokenizeConfig, corpus: Corpus, rejects: list[Reject]) -> None:
    """Raises FlextokError when too many images could not be decoded; the reasons are logged before."""
    if rejects:
        for line in describe_rejects(rejects):
            logger.info("rejected: %s", line)
    if len(rejects) > config.max_reject_fraction * corpus.num_samples:
        raise FlextokError(
            f"expected at most {config.max_reject_fraction:.1%} undecodable images, found {len(rejects)} of "
            f"{corpus.num_samples}: {', '.join(reject.source for reject in rejects[:LISTED_FAULTS])}; "
            "mend the corpus, or allow more with max_reject_fraction (finished shards are kept and list them all)"
        )


def _check_counts(tasks: list[ShardTask], records: list[ShardRecord], views: int) -> None:
    by_name = {record.shard: record for record in records}
    for task in tasks:
        record = by_name[task.name]
        if record.rows + record.rejects * views != task.source.samples * views:
            raise IntegrityError(
                f"expected {task.source.samples} images in {task.dest}, found {record.rows // views} and "
                f"{record.rejects} rejects; run the same command again"
            )


def _commit(
    corpus: Corpus,
    spec: TokenizerSpec,
    dest: str,
    config: TokenizeConfig,
    tasks: list[ShardTask],
    records: list[ShardRecord],
    rejects: list[Reject],
    changed: bool,
) -> str:
    """Write the manifest, unless the one that is there says the same; gives the digest of the store."""
    if not changed and storage.exists(storage.join(dest, MANIFEST)):
        manifest = read_manifest(dest)
        entries = [dataclasses.asdict(record) for record in sorted(records, key=lambda record: record.shard)]
        if manifest["shards"] == entries and manifest["tokens"]["corpus"] == corpus.digest:
            return manifest["digest"]
    inputs = [artifact_input(corpus.url), _tokenizer_input(spec)]
    recipe = config.content()
    return write_token_manifest(dest, "tokens", records, tasks[0].meta, inputs, recipe, rejects)


def _tokenizer_input(spec: TokenizerSpec) -> dict[str, str]:
    try:
        return artifact_input(spec.url)
    except UsageError:  # the official layout has no provenance of ours
        return {"kind": "tokenizer", "digest": spec.digest, "uri": spec.url}
