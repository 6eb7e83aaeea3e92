"""`shard_corpus`: any supported source to WebDataset shards with a manifest, every input accounted for.

    dest/shards/000000.tar ...      WebDataset: <key>.<ext>, .cls, .txt, .json
    dest/index/000000.parquet ...   one row a sample: where its picture lies in the tar, label, size, hash
    dest/plan.parquet               which input goes into which shard
    dest/manifest.parquet           shard, samples, bytes, sha256
    dest/rejects.parquet            source, reason, detail (reasons: flextok.data.rejects)
    dest/manifest.json              written last: the commit

A run that is interrupted, however it ends, goes on where it stopped; a run on a source with new inputs adds shards.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterable

import polars as pl

from flextok import storage
from flextok.data.config import CorpusConfig, InputsConfig, SourceConfig
from flextok.data.corpus.assignment import PLAN_FILE, Plan, make_plan, read_plan, shard_fingerprint, write_plan
from flextok.data.corpus.builder import CorpusShardRecord, PlannedInput, ShardBuilder, read_record
from flextok.data.corpus.duplicates import count_duplicates, drop_duplicates, find_duplicates, find_near_duplicates
from flextok.data.corpus.layout import MANIFEST
from flextok.data.corpus.manifest import (
    NEAR_DUPLICATES_TABLE,
    REJECTS_TABLE,
    SHARDS_TABLE,
    CorpusSummary,
    commit,
    write_table,
    write_tables,
)  # fmt: skip
from flextok.data.corpus.reader import read_indexes
from flextok.data.corpus.sight import Sight
from flextok.data.corpus.workers import build_shards, build_shards_on_cluster
from flextok.data.rejects import EXPECTED_REASONS, Reject, describe_rejects
from flextok.data.sources.catalog import Catalog, absolute, check_sources, list_sources, shown_sources
from flextok.data.sources.staging import Staging
from flextok.data.sources.stems import TEXT_KINDS
from flextok.digests import digest_of
from flextok.errors import FlextokError, IntegrityError, UsageError
from flextok.runtime.cluster import ensure_ray
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.lock import LOCK_FILE, locked
from flextok.runtime.progress import track
from flextok.runtime.storage_errors import storage_errors

__all__ = ["CorpusSummary", "shard_corpus"]

logger = logging.getLogger(__name__)

STAGING = ".staging"
LOOKED_AT = 20
"""Inputs of a source that are tried for one that can be read, which nodes must then read too."""
CONTENT_VERSION = 1
"""Raised when the same input would give other shards, so that finished ones are made again."""


@storage_errors("write {dest}", keeps="finished shards are kept")
def shard_corpus(
    config: CorpusConfig,
    split: str,
    dest: str,
    workers: int | None = 1,
    progress: bool = True,
    compute: ComputeConfig | None = None,
) -> CorpusSummary:
    """Write the `split` ("train", "val" or "all") of a corpus under `dest`; the result does not depend on `workers`.

    They are processes of this machine or, where `compute` has the address of a cluster, workers on its nodes, as far as
    there is room; None takes all cores.

    Raises UsageError for a source or destination that cannot be used; FlextokError when there is nothing to keep, too
    much was rejected (after writing the rejects and telling their reasons), or another run writes to `dest`.
    """
    dest = storage.absolute(dest)
    config = _with_absolute_sources(config)
    check_sources(config)
    _check_place(config, dest)
    cluster = compute if compute is not None and compute.on_cluster else None
    with locked(dest):
        _check_destination(config, split, dest)
        staging = Staging(_staging_folder(dest, shared=cluster is not None))
        catalog = list_sources(config, split, staging)
        if config.label_csv is not None and catalog.labels.csv_sha256 is None:
            logger.info("labels: no %s beside the pictures; their folders are the classes", config.label_csv)
        summary = _shard(config, split, dest, workers, progress, catalog, cluster)
        staging.remove()
        return summary


def _shard(
    config: CorpusConfig,
    split: str,
    dest: str,
    workers: int | None,
    progress: bool,
    catalog: Catalog,
    cluster: ComputeConfig | None,
) -> CorpusSummary:
    if catalog.frame.is_empty() and not catalog.rejects:
        raise FlextokError(
            f"empty corpus: expected pictures in {shown_sources(config)}, found none; check corpus.source"
        )
    plan = _plan(config, catalog, dest)
    builder = ShardBuilder(
        dest, catalog.readers, catalog.labels, config.limits(), config.resize_short_side, config.near_duplicates
    )
    _clear_leftovers(dest, plan)
    records = _build_all(builder, plan, catalog, workers, progress, cluster)
    _clear_leftovers(dest, plan)
    duplicates, near = _compare(config, dest, records)
    rejects = catalog.rejects + _shard_rejects(dest, records)
    storage.remove(storage.join(dest, MANIFEST))
    write_tables(dest, records, rejects)
    _judge(config, dest, sum(record.samples for record in records.values()), rejects)
    _tell_removed(plan, dest)
    return commit(config, split, dest, catalog, plan, records, rejects, duplicates, near)


def _settings_digest(config: CorpusConfig, catalog: Catalog) -> str:
    """Everything but the inputs that decides what the shards hold."""
    content = {name: value for name, value in config.content().items() if name not in InputsConfig.model_fields}
    sources = [storage.redact(storage.absolute(source.url)) for source in config.all_sources()]
    return digest_of(
        [CONTENT_VERSION, content, sources, catalog.prefixes,
         catalog.labels.classes, catalog.labels.csv_sha256]
    )  # fmt: skip


def _check_place(config: CorpusConfig, dest: str) -> None:
    """Refuses to write into a source."""
    for source in config.all_sources():
        if storage.is_local(dest) and f"{dest}/".startswith(f"{storage.absolute(source.url)}/"):
            raise UsageError(
                f"expected a destination outside the source, found {dest} inside {source.url}; choose another"
            )


def _check_destination(config: CorpusConfig, split: str, dest: str) -> None:
    """Refuses to write over something that is not this corpus."""
    names = storage.list_names(dest)
    if MANIFEST in names:
        found = storage.read_json(storage.join(dest, MANIFEST))
        known = (found.get("name"), found.get("split")) if isinstance(found, dict) else None
        if known != (config.name, split):
            raise UsageError(
                f"expected corpus {config.name!r} ({split}) or nothing in {dest}, found {known}; choose another"
            )
        return
    ours = {LOCK_FILE, STAGING, "shards", "index", PLAN_FILE, SHARDS_TABLE, REJECTS_TABLE, NEAR_DUPLICATES_TABLE}
    foreign = [name for name in names if name not in ours]
    if foreign:
        raise UsageError(f"expected an empty destination, found {', '.join(foreign[:5])} in {dest}; choose another")


def _with_absolute_sources(config: CorpusConfig) -> CorpusConfig:
    """Sources that mean the same in every process."""
    single = absolute(SourceConfig(url=config.source, format=config.format))
    return config.model_copy(update={"source": single.url, "sources": tuple(map(absolute, config.sources))})


def _staging_folder(dest: str, shared: bool) -> str:
    """On this machine where it can be, for speed; beside the shards where other machines must read it too."""
    if shared or storage.is_local(dest):
        return storage.join(dest, STAGING)
    return storage.join(tempfile.gettempdir(), f"flextok-staging-{digest_of(dest)[:16]}")


def _plan(config: CorpusConfig, catalog: Catalog, dest: str) -> Plan:
    """The stored plan with new inputs behind it, or a new plan when there is none or the settings changed."""
    settings = _settings_digest(config, catalog)
    earlier = read_plan(dest)
    if earlier is not None and earlier.settings != settings:
        storage.remove(storage.join(dest, MANIFEST))
        earlier = None
    if earlier is not None:
        earlier = _without_texts(earlier, catalog)
    plan = make_plan(catalog.frame, config, settings, earlier.frame if earlier else None)
    if earlier is None or not plan.frame.equals(earlier.frame):
        write_plan(dest, plan)
    return plan


def _without_texts(earlier: Plan, catalog: Catalog) -> Plan | None:
    """`earlier` without the texts that an earlier version took for inputs, and rejected; None where that empties a shard."""
    ending = pl.col("name").str.to_lowercase().str.extract(r"\.([a-z]+)$")
    texts = earlier.frame.filter(ending.is_in(TEXT_KINDS)).join(catalog.frame.select("name"), on="name", how="anti")
    if texts.is_empty():
        return earlier
    frame = earlier.frame.join(texts.select("name"), on="name", how="anti", maintain_order="left")
    return Plan(frame, earlier.settings) if frame["shard"].n_unique() == earlier.num_shards else None


def _clear_leftovers(dest: str, plan: Plan) -> None:
    """Removes temporary files of a killed run or a lost worker, and shards that the plan does not have."""
    wanted = {f"{shard:06d}" for shard in range(plan.num_shards)}
    for folder in ("", "shards", "index"):
        url = storage.join(dest, folder) if folder else dest
        for name in storage.sizes(url):
            if name.startswith(storage.TEMPORARY_PREFIX) or (folder and name.partition(".")[0] not in wanted):
                storage.remove(storage.join(url, name))


def _build_all(
    builder: ShardBuilder,
    plan: Plan,
    catalog: Catalog,
    workers: int | None,
    progress: bool,
    cluster: ComputeConfig | None,
) -> dict[str, CorpusShardRecord]:
    """Records of all shards, in order; only shards that are not there yet are made."""
    stored = storage.sizes(storage.join(builder.dest, "shards"))
    planned = plan.frame.join(
        catalog.frame.select("name", "where", "reader"), on="name", how="left", maintain_order="left"
    )
    finished: dict[str, CorpusShardRecord] = {}
    missing: list[tuple[str, str, int, int]] = []
    start = 0
    for number, count in plan.frame["shard"].rle().struct.unnest().select("value", "len").iter_rows():
        shard, fingerprint = f"{number:06d}", shard_fingerprint(plan.settings, planned.slice(start, count))
        found = read_record(builder.dest, shard) if f"{shard}.tar" in stored else None
        if found and found[0].fingerprint == fingerprint and found[0].bytes == stored[f"{shard}.tar"]:
            finished[shard] = found[0]
        else:
            missing.append((shard, fingerprint, start, count))
        start += count
    jobs = (
        (shard, fingerprint, _inputs(planned.slice(first, count), catalog.prefixes))
        for shard, fingerprint, first, count in missing
    )
    sizes = {shard: count for shard, _, _, count in missing}
    if cluster is None or not missing:
        made = build_shards(builder, jobs, min(workers or os.cpu_count() or 1, len(missing)))
    else:
        ensure_ray(cluster.address)
        sight = Sight.wanted(builder, _inputs(_some_of_each_reader(planned), catalog.prefixes))
        made = build_shards_on_cluster(builder, jobs, len(missing), workers, cluster, sight)
    with track("sharding", plan.frame.height, "pictures") if progress else contextlib.nullcontext() as task:
        if task:
            task.advance(plan.frame.height - sum(sizes.values()))
        for shard, record in made:
            finished[shard] = record
            if task:
                task.advance(sizes[shard])
    return {shard: finished[shard] for shard in sorted(finished)}


def _some_of_each_reader(planned: pl.DataFrame) -> pl.DataFrame:
    return planned.drop_nulls("reader").filter(pl.int_range(pl.len()).over("reader") < LOOKED_AT)


def _inputs(rows: pl.DataFrame, prefixes: tuple[str, ...]) -> list[PlannedInput]:
    return [
        # An input that has left the source since it was planned has no reader; the first one will find it gone.
        PlannedInput(reader or 0, key, name.removeprefix(prefixes[reader or 0]), name, size, note)
        for key, name, size, note, reader in rows.select("key", "name", "size", "where", "reader").iter_rows()
    ]


def _compare(config: CorpusConfig, dest: str, records: dict[str, CorpusShardRecord]) -> tuple[int, int | None]:
    """Counts of equal and of nearly equal samples; `records` follow when equal ones are dropped."""
    if not records:
        return 0, None
    count = count_duplicates(dest, list(records))
    if config.duplicates == "drop" and count:
        duplicates = find_duplicates(read_indexes(dest, list(records), ["key", "source", "sha256"]))
        records.update(drop_duplicates(dest, duplicates))
        count = 0
    if not config.near_duplicates:
        return count, None
    near = find_near_duplicates(read_indexes(dest, list(records), ["key", "source", "sha256", "phash"]))
    write_table(dest, NEAR_DUPLICATES_TABLE, near.to_arrow())
    return count, near.height


def _shard_rejects(dest: str, shards: Iterable[str]) -> list[Reject]:
    rejects: list[Reject] = []
    for shard in shards:
        found = read_record(dest, shard)
        if found is None:
            raise IntegrityError(
                f"expected the index of shard {shard} in {dest}, found none; run the same command again"
            )
        rejects += found[1]
    return rejects


def _tell_removed(plan: Plan, dest: str) -> None:
    if plan.removed:
        logger.warning(
            "%d inputs are gone from the source; their samples stay in %s (delete the folder and shard again to leave "
            "them out)",
            plan.removed,
            dest,
        )


def _judge(config: CorpusConfig, dest: str, samples: int, rejects: list[Reject]) -> None:
    """Raises FlextokError when nothing or too little is left; the reasons go to stderr before."""
    unexpected = [reject for reject in rejects if reject.reason not in EXPECTED_REASONS]
    inputs = samples + len(unexpected)
    if samples and len(unexpected) <= config.max_reject_fraction * inputs:
        return
    for line in describe_rejects(rejects):
        logger.warning("%s", line)
    listed = f"all are listed in {storage.join(dest, 'rejects.parquet')}"
    if not samples:
        raise FlextokError(
            f"empty corpus: expected pictures in {shown_sources(config)}, found {len(rejects)} rejects only; {listed}"
        )
    raise FlextokError(
        f"expected at most {config.max_reject_fraction:.1%} rejects, found {len(unexpected)} of {inputs} "
        f"({len(unexpected) / inputs:.1%}); {listed}; mend the source, or allow more with corpus.max_reject_fraction"
    )
