"""What makes a folder of shards a corpus: manifest.parquet, rejects.parquet and, last, manifest.json.

manifest.json: `{format, digest, name, split, counts: {members, fields, inputs, samples, rejects, shards, duplicates}, reasons, classes,
sources: [{name, url, weight}], added, removed, files: {name: sha256}, provenance, checksum}`; `digest` is over the
shards (name, samples, sha256), and over the sources' weights where these differ; `files` covers every other file,
`checksum` the document itself without this field.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.config import CorpusConfig
from flextok.data.corpus.assignment import PLAN_FILE, Plan
from flextok.data.corpus.builder import CorpusShardRecord
from flextok.data.corpus.layout import MANIFEST
from flextok.data.rejects import Reject, count_reasons, rejects_table
from flextok.data.sources.catalog import Catalog
from flextok.digests import digest_of, digest_rows
from flextok.provenance import make_provenance

FORMAT = "flextok.corpus/1"
SHARDS_TABLE = "manifest.parquet"
REJECTS_TABLE = "rejects.parquet"
NEAR_DUPLICATES_TABLE = "near_duplicates.parquet"
COUNTS = ("members", "fields", "inputs", "samples", "rejects", "shards", "duplicates")
MANIFEST_SCHEMA = pa.schema(
    [("shard", pa.string()), ("samples", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())]
)


@dataclass(frozen=True)
class CorpusSummary:
    """What a finished run made: `samples + rejects == inputs` and `inputs + fields == members` (see `data.rejects`)."""

    url: str
    digest: str
    members: int
    fields: int
    inputs: int
    samples: int
    rejects: int
    shards: int
    reason_counts: dict[str, int]
    classes: list[str] | None
    duplicates: int
    """Samples that were kept although their bytes equal an earlier sample's."""
    near_duplicates: int | None
    """Pairs in near_duplicates.parquet; None when it was not asked for."""
    added: int
    """Inputs that the corpus did not have before this run."""
    removed: int
    """Inputs that are gone from the source; their samples are still in the corpus."""


def corpus_digest(shards: Iterable[tuple[str, int, str]], sources: list[dict[str, Any]]) -> str:
    """Digest of a corpus from its shards (name, samples, sha256) and the manifest's `sources`.

    Weights decide what training on it gives. Those that are all equal decide nothing, and count for nothing.
    """
    digest = digest_rows(shards)
    weights = {source["name"]: source["weight"] for source in sources}
    return digest_of([digest, weights]) if len(set(weights.values())) > 1 else digest


def write_tables(dest: str, records: dict[str, CorpusShardRecord], rejects: list[Reject]) -> None:
    """Store manifest.parquet and rejects.parquet."""
    rows = [(shard, record.samples, record.bytes, record.sha256) for shard, record in records.items()]
    columns = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(MANIFEST_SCHEMA)]
    write_table(dest, SHARDS_TABLE, pa.Table.from_arrays(columns, schema=MANIFEST_SCHEMA))
    write_table(dest, REJECTS_TABLE, rejects_table(rejects))


def write_table(dest: str, name: str, table: pa.Table) -> None:
    """Store one Parquet file under `dest`."""
    with storage.atomic_write(storage.join(dest, name)) as file:
        pq.write_table(table, file, compression="zstd")


def commit(
    config: CorpusConfig,
    split: str,
    dest: str,
    catalog: Catalog,
    plan: Plan,
    records: dict[str, CorpusShardRecord],
    rejects: list[Reject],
    duplicates: int,
    near_duplicates: int | None,
) -> CorpusSummary:
    """Write manifest.json, which makes everything under `dest` a corpus."""
    sources = [
        {"name": prefix.rstrip("/"), "url": storage.redact(source.url), "weight": source.weight}
        for source, prefix in zip(config.all_sources(), catalog.prefixes, strict=True)
    ]
    digest = corpus_digest(((shard, record.samples, record.sha256) for shard, record in records.items()), sources)
    inputs = plan.frame.height + len(catalog.rejects)
    summary = CorpusSummary(
        url=dest,
        digest=digest,
        members=inputs + catalog.fields,
        fields=catalog.fields,
        inputs=inputs,
        samples=sum(record.samples for record in records.values()),
        rejects=len(rejects),
        shards=len(records),
        reason_counts=count_reasons(rejects),
        classes=catalog.labels.classes,
        duplicates=duplicates,
        near_duplicates=near_duplicates,
        added=plan.added,
        removed=plan.removed,
    )
    names = [SHARDS_TABLE, REJECTS_TABLE, PLAN_FILE, *(f"index/{shard}.parquet" for shard in records)]
    if near_duplicates is not None:
        names.append(NEAR_DUPLICATES_TABLE)
    document = {
        "format": FORMAT,
        "digest": digest,
        "name": config.name,
        "split": split,
        "counts": {name: getattr(summary, name) for name in COUNTS},
        "reasons": summary.reason_counts,
        "classes": summary.classes,
        "sources": sources,
        "added": plan.added,
        "removed": plan.removed,
        "files": {name: storage.sha256_file(storage.join(dest, name)) for name in names},
        "provenance": make_provenance(
            "corpus", digest, [], _redacted({**config.model_dump(mode="json"), "split": split}), dest
        ),
    }
    storage.write_json(storage.join(dest, MANIFEST), {**document, "checksum": digest_of(document)})
    return summary


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return storage.redact(value) if isinstance(value, str) else value
