"""Samples on Ray Data: ranges of samples are the rows, as shards are those of a tokenization.

Each range becomes a shard of the token store, visible when it is whole; then, where wanted, pictures and features of its
samples are made by another such job; the manifest is written last. A run that ends early, however it ends, is resumed by
the same command, and what is made does not depend on actors or timing (see `flextok.tokenize.job` on batch sizes).
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from flextok import storage
from flextok.data.corpus.reader import Shard
from flextok.data.tokens import (
    FORMAT,
    DamagedFile,
    ShardRecord,
    TokenMeta,
    read_manifest,
    read_shard_footer,
    write_token_manifest,
)
from flextok.data.tokens.writer import MANIFEST
from flextok.digests import digest_of
from flextok.errors import IntegrityError, UsageError
from flextok.evaluate.config import SamplingConfig, SetComparisonConfig, keep_counts
from flextok.evaluate.decoding import decoding_dtype, dtype_name
from flextok.evaluate.measure import ImageSets
from flextok.evaluate.protocol import decoder_record, evaluation_device
from flextok.evaluate.samples.condition import Condition
from flextok.evaluate.samples.decoding import DecodeTask, SampleDecoder, finished_decoding, lacks_pictures
from flextok.evaluate.samples.drawing import DrawTask, SampleDrawer, sample_key
from flextok.evaluate.samples.layout import DECODED, decoded_url, features_folder, image_folder
from flextok.model.checkpoint import CONFIG
from flextok.model.load import prior_outline, tokenizer_outline
from flextok.model.priors.config import PriorConfig
from flextok.provenance import artifact_input
from flextok.runtime.cluster import ensure_ray
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.members import pack_members
from flextok.runtime.nodes import cluster_nodes
from flextok.tokenize.fitness import Proof
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.scheduler import choose_workers
from flextok.tokenize.shards import (
    MadeShards,
    check_no_mix,
    clear_leftovers,
    make_shards,
    remove_strays,
    run_here,
    run_shown,
)
from flextok.tokenize.tasks import Finished, TaskT, finished_record, refuse_others
from flextok.tokenize.worker import ShardWorker
from flextok.version import __version__

SAMPLES_FOR_AN_ACTOR = 200
"""An actor costs seconds to start, and draws some tens of samples in a second."""
OWN_SETTINGS = ("keep", "guidance", "shard_samples", "pictures")
"""Of the samples, which the record of the sampler has elsewhere or not at all."""


@dataclass(frozen=True)
class SamplesJob:
    """Samples to make: all that decides them, and where the work runs. See `plan_samples`."""

    prior_url: str
    prior: str
    """Its digest."""
    tokenizer_url: str
    config: SamplingConfig
    condition: Condition
    keeps: list[int]
    """Token counts at which there are pictures, or features of pictures."""
    shown: int
    """Samples whose pictures are kept, the first ones."""
    measured: int
    """Samples whose features are gathered, the first ones."""
    sets: SetComparisonConfig | None
    """What the features are gathered for."""
    image_px: int
    meta: TokenMeta
    recipe: dict[str, Any]
    inputs: list[dict[str, str]]
    compute: ComputeConfig | None
    device: str
    dtype: torch.dtype

    @property
    def num(self) -> int:
        """Samples in all."""
        return self.config.samples.num

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the shards."""
        return digest_of(
            [self.meta.identity(), self.condition.record(), self.config.samples.shard_samples, __version__]
        )

    def draw_tasks(self, folder: str) -> list[DrawTask]:
        """A task for each shard, in `folder`."""
        tasks, size = [], self.config.samples.shard_samples
        for number, first in enumerate(range(0, self.num, size)):
            samples, name = min(size, self.num - first), f"{number:06d}"
            content = [self.meta.identity(), self.condition.record(), first, samples, __version__]
            meta = replace(self.meta, fingerprint=digest_of(content))
            source = Shard(name, self.prior_url, samples, 0, self.prior)
            file = storage.join(folder, f"{name}.parquet")
            tasks.append(DrawTask(self.prior_url, source, file, meta, False, first, self.image_px))
        return tasks

    def decode_tasks(self, folder: str, records: Sequence[ShardRecord]) -> list[DecodeTask]:
        """A task for each shard of which anything but tokens is wanted; they are in `folder` as `records` say."""
        tasks, found = [], {record.shard: record for record in records}
        for draw in self.draw_tasks(folder):
            shown, measured = (min(max(0, count - draw.first), len(draw.rows)) for count in (self.shown, self.measured))
            if shown or measured:
                record = found[draw.name]
                source = Shard(draw.name, draw.dest, record.rows, record.bytes, record.content_sha256)
                content = [self.recipe, draw.first, record.content_sha256, __version__]
                place = decoded_url(folder, draw.name)
                tasks.append(DecodeTask(folder, source, place, self.keeps, shown, measured, digest_of(content)))
        return tasks


def plan_samples(
    prior_url: str,
    tokenizer_url: str,
    config: SamplingConfig,
    steer: Callable[[PriorConfig], Condition],
    compute: ComputeConfig | None = None,
    sets: SetComparisonConfig | None = None,
    positions: int | None = None,
) -> SamplesJob:
    """The job that draws `config.samples.num` samples, `positions` tokens of each (None: all), as `steer` says for the prior.

    With `sets`, features for its metrics are gathered of the samples that it compares, unless the pictures of all are
    kept. Raises UsageError where prior, tokenizer and settings do not go together.
    """
    config = config.part(SamplingConfig)
    settings = config.samples
    device = evaluation_device(compute)
    dtype = decoding_dtype(config, device)
    prior, prior_digest = prior_outline(prior_url)
    tokenizer = tokenizer_outline(tokenizer_url)
    if prior.tokenizer not in ("", tokenizer.digest):
        raise UsageError(
            f"expected the tokenizer {prior.tokenizer[:12]} that prior {prior_url} was trained for, "
            f"found {tokenizer.digest[:12]}; train the prior on this tokenizer's tokens"
        )
    positions = positions or prior.num_tokens
    keeps = keep_counts(settings.keep or config.keep, positions)
    condition = steer(prior)
    shown = settings.num if settings.pictures is None else min(settings.num, settings.pictures)
    recipe: dict[str, Any] = {
        "keep": keeps,
        "decoder": decoder_record(tokenizer, config, dtype_name(dtype)),
        "sampler": {
            **{name: value for name, value in settings.content().items() if name not in OWN_SETTINGS},
            "prior_guidance": settings.guidance,
            "seed": config.seed,
            "labels": condition.rule,
        },
    }
    measured = 0
    if shown < settings.num:
        recipe["pictures"] = shown
        if sets is not None:
            measured = min(settings.num, sets.distance_images or settings.num)
            recipe["features"] = _features_record(sets, measured, prior_url)
    meta = TokenMeta(
        tokenizer=tokenizer.digest,
        vocab_size=prior.vocab_size,
        num_tokens=positions,
        codebooks=prior.codebooks,
        preprocess={"size": tokenizer.config.image_size, "sampled": {"prior": prior_digest, **recipe}},
    )
    return SamplesJob(
        prior_url=storage.absolute(prior_url),
        prior=prior_digest,
        tokenizer_url=storage.absolute(tokenizer_url) if storage.exists(tokenizer_url) else tokenizer_url,
        config=config,
        condition=condition,
        keeps=keeps,
        shown=shown,
        measured=measured,
        sets=sets,
        image_px=tokenizer.config.image_size,
        meta=meta,
        recipe=recipe,
        inputs=[artifact_input(prior_url), artifact_input(tokenizer_url)],
        compute=compute,
        device=device,
        dtype=dtype,
    )


def draw(job: SamplesJob, folder: str) -> MadeShards[DrawTask]:
    """Have all shards of tokens in `folder`, whose lock is held; finished ones are kept, whatever else is there goes.

    Raises FlextokError where some could not be drawn; the others stay then, and the same call resumes.
    """
    tasks = job.draw_tasks(folder)

    def make(todo: list[DrawTask], _finished: object) -> list[ShardOutcome]:
        arguments = {
            "prior_url": job.prior_url,
            "digest": job.prior,
            "condition": job.condition,
            "config": job.config.model_dump(mode="json"),
            "positions": job.meta.num_tokens,
            "device": job.device,
        }
        return _run(job, "sample", tasks, todo, SampleDrawer, arguments, storage.join(job.prior_url, CONFIG), folder)

    made = make_shards(folder, tasks, finished_record, make, "drawn")
    rows = {record.shard: record.rows for record in made.records}
    for task in tasks:
        if rows[task.name] != len(task.rows):
            raise IntegrityError(
                f"expected {len(task.rows)} samples in {task.dest}, found {rows[task.name]}; run the same command again"
            )
    check_no_mix(tasks, lambda task: read_shard_footer(task.dest).meta.fingerprint == task.meta.fingerprint)
    remove_strays(folder, tasks, ".parquet")
    return made


def copy_shards(job: SamplesJob, made: MadeShards[DrawTask], folder: str) -> None:
    """Have the shards that were drawn in `folder` too; its manifest goes where one was not there as it is."""
    for drawn, task in zip(made.tasks, job.draw_tasks(folder), strict=True):
        if finished_record(task) is None:
            storage.remove(storage.join(folder, MANIFEST))
            with storage.open_read(drawn.dest) as source, storage.atomic_write(task.dest) as file:
                shutil.copyfileobj(source, file, storage.CHUNK_BYTES)
    remove_strays(folder, made.tasks, ".parquet")


def decode(job: SamplesJob, folder: str, records: Sequence[ShardRecord]) -> bool:
    """Have the pictures and features that are wanted of the shards in `folder`, whose lock is held; gives whether any was made.

    What is there already is kept, and made again where it is damaged.
    """
    tasks = job.decode_tasks(folder, records)
    if not tasks:
        return False
    clear_leftovers(storage.join(folder, DECODED))
    for keep in job.keeps:
        clear_leftovers(image_folder(folder, keep))
        clear_leftovers(features_folder(folder, keep))
    sizes = {keep: storage.sizes(image_folder(folder, keep)) for keep in job.keeps}
    keys = {task.name: list(map(sample_key, task.rows)) for task in job.draw_tasks(folder)}

    def finished(task: DecodeTask) -> Finished | None:
        return None if lacks_pictures(task, keys[task.name], sizes) else finished_decoding(task)

    def make(todo: list[DecodeTask], _finished: object) -> list[ShardOutcome]:
        for task in todo:
            storage.remove(task.dest)  # an actor looks at it, but not at the pictures
        arguments = {
            "tokenizer_url": job.tokenizer_url,
            "digest": job.meta.tokenizer,
            "config": job.config.model_dump(mode="json"),
            "sets": job.sets.model_dump(mode="json") if job.sets is not None and job.measured else None,
            "device": job.device,
            "dtype": dtype_name(job.dtype),
        }
        return _run(job, "decode samples", tasks, todo, SampleDecoder, arguments, tasks[0].source.url, folder)

    made = make_shards(folder, tasks, finished, make, "decoded")
    remove_strays(storage.join(folder, DECODED), tasks, ".json")
    return bool(made.outcomes)


def check_destination(job: SamplesJob, folder: str) -> None:
    """Raises UsageError when `folder` holds anything but samples of this job, which it must not write over."""

    def refuse_foreign(url: str) -> None:
        try:
            found = read_shard_footer(url).meta
        except DamagedFile:
            return  # it is made again
        except IntegrityError:
            raise UsageError(
                f"expected only samples beside {url}, found another Parquet file; give another folder"
            ) from None
        if found.identity() != job.meta.identity():
            raise UsageError(
                f"expected samples of prior {job.prior[:12]} with these settings in {url}, found other rows; give another "
                "folder, or remove this one"
            )

    refuse_others(folder, FORMAT, ".parquet", refuse_foreign)


def commit(job: SamplesJob, folder: str, records: Sequence[ShardRecord]) -> str:
    """Write the manifest, by which the folder counts; gives the digest."""
    return write_token_manifest(folder, "samples", records, job.meta, job.inputs, job.recipe)


def committed(folder: str, records: Sequence[ShardRecord]) -> str | None:
    """The digest of the manifest that is there and lists just these shards; None where there is none."""
    if not storage.exists(storage.join(folder, MANIFEST)):
        return None
    manifest = read_manifest(folder)
    listed = {entry["shard"]: entry["sha256"] for entry in manifest["shards"]}
    return manifest["digest"] if listed == {record.shard: record.sha256 for record in records} else None


def _features_record(sets: SetComparisonConfig, images: int, place: str) -> dict[str, Any]:
    """Which features are gathered, as the recipe has it; raises what `ImageSets` does, before any expensive work."""
    comparison = ImageSets(sets, evaluation_device())
    comparison.require(images, f"samples of {place}")
    kept = {source: sorted(names) for source, names in comparison.kept.items()}
    return {"images": images, "records": comparison.records(), "kept": kept}


def _works_here(job: SamplesJob, shards: int) -> bool:
    """Whether the work is done in this process: a single shard, or all by the one GPU of this machine."""
    compute = job.compute
    if compute is None or compute.on_cluster:
        return compute is None
    return shards == 1 or (job.device == "cuda" and not compute.gpus_per_worker)


def _run(
    job: SamplesJob,
    title: str,
    tasks: Sequence[TaskT],
    todo: list[TaskT],
    actor: type[ShardWorker[TaskT, Any]],
    arguments: dict[str, Any],
    source: str,
    folder: str,
) -> list[ShardOutcome]:
    """Make what is `todo` of a job's `tasks`, in `folder`; workers must be able to read the file `source`."""
    if not todo:
        return []
    total = sum(task.source.samples for task in tasks)
    if job.compute is None or _works_here(job, len(tasks)):
        return run_here(title, total, todo, actor, {**arguments, "threads": None})
    compute = job.compute
    ensure_ray(compute.address, compute.num_cpus)
    # Sums of several threads round otherwise than those of one, and several actors do as well.
    compute = compute.model_copy(update={"threads": compute.threads or 1})
    nodes = cluster_nodes(compute.resources)
    workers = choose_workers([task.source.samples for task in todo], compute, nodes, SAMPLES_FOR_AN_ACTOR)
    arguments |= {"threads": workers.threads, "members": pack_members(), "proof": Proof.wanted(source, folder)}
    return run_shown(title, total, todo, actor, arguments, workers)
