"""What is out of date, and why. The only module that touches Dagster's private staleness resolver.

Dagster's rules, and what is added to them here:

- missing: never materialized; or its files are gone, or hold another artifact by now;
- stale: made with other settings (code version), or a direct input has another data version;
- stale: the step that made it failed after all (Dagster records a result whose blocking check did not hold);
- the root asset is stale when its source, listed anew, differs from the listing on record.

Staleness is one edge deep: whether what depends on a stale asset must run is known only once that is rebuilt, and
it need not when the new data is the old. Until then `survey` says what such an asset waits for.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.loader import LoadingContextForTest

from flextok import provenance
from flextok.errors import FlextokError
from pipelines.workspace import Workspace

SHOWN_DIFFERENCES = 3
AssetPart = tuple[dg.AssetKey, str | None]


@dataclass(frozen=True)
class AssetState:
    """One asset, or one partition of it."""

    key: dg.AssetKey
    partition: str | None
    status: str
    reasons: tuple[str, ...]
    waits_for: tuple[str, ...]
    digest: str | None
    uri: str | None

    @property
    def label(self) -> str:
        """How a person calls it: `tokenizer`, `image_shards[scenes/val]`."""
        return label(self.key, self.partition)

    @property
    def must_run(self) -> bool:
        """Whether a refresh runs it now: it is out of date by itself, not only by what it waits for."""
        return bool(self.reasons)


def label(key: dg.AssetKey, partition: str | None) -> str:
    """`name` or `name[partition]`."""
    return key.path[-1] + (f"[{partition}]" if partition else "")


def partitions_of(graph: Any, key: dg.AssetKey) -> list[str | None]:
    """The partition keys of an asset, [None] when it has none (asked without a key, Dagster always says fresh)."""
    node = graph.get(key)
    return list(node.partitions_def.get_partition_keys()) if node.is_partitioned else [None]


def survey(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    settings: Callable[[str], dict[str, Any]],
    workspace: Workspace,
    list_source: Callable[[str], str],
) -> list[AssetState]:
    """The state of every asset and partition, in an order in which they could be built.

    `settings(stage)` are the settings a stage reads now; `list_source(partition)` lists the corpus' source anew and gives the digest of the listing.
    """
    graph = defs.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    states: dict[AssetPart, AssetState] = {}
    for key in graph.toposorted_asset_keys:
        for partition in partitions_of(graph, key):
            record = latest_record(instance, key, partition)
            metadata = metadata_of(record)
            found = resolver.get_status(key, partition)
            status = {StaleStatus.MISSING: "missing", StaleStatus.STALE: "stale"}.get(found, "fresh")
            reasons = ["it was never made"] if status == "missing" else []
            for cause in resolver.get_stale_causes(key, partition) if status == "stale" else []:
                if cause.category.value == "CODE":
                    reasons.append(_settings_changed(metadata, settings(key.path[-1])))
                elif cause.category.value == "DATA":
                    reasons.append(
                        f"{label(cause.dependency.asset_key, cause.dependency.partition_key)} has other data"
                    )
                else:
                    reasons.append(f"it {cause.reason}")
            if record is not None:
                gone = _files_gone(record, metadata, workspace)
                if gone:
                    status, reasons = "missing", [gone]
                if _step_failed(instance, record):
                    status, reasons = "stale", ["the run that made it failed (a check did not hold)"]
                if not graph.get(key).parent_keys and status == "fresh":
                    reasons = _source_changed(partition, data_version(record), list_source)
                    status = "stale" if reasons else "fresh"
            waits = tuple(
                states[parent].label
                for parent in _parents(resolver, key, partition)
                if states[parent].status != "fresh"
            )
            if waits and status == "fresh":
                status = "stale"
            states[key, partition] = AssetState(
                key, partition, status, tuple(reasons), waits, data_version(record), metadata.get("dagster/uri")
            )
    return list(states.values())


def latest_record(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> Any | None:
    """Dagster's record of the latest materialization, None when there is none."""
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
    records = instance.fetch_materializations(wanted, limit=1).records
    return records[0] if records else None


def metadata_of(record: Any | None) -> dict[str, Any]:
    """The plain values of a record's metadata."""
    if record is None:
        return {}
    return {name: entry.value for name, entry in record.asset_materialization.metadata.items()}


def data_version(record: Any | None) -> str | None:
    """The digest a record stands for."""
    return record.asset_materialization.tags.get("dagster/data_version") if record else None


def parents(graph: Any, instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> list[AssetPart]:
    """The assets and partitions that `key` (its `partition`) reads."""
    return _parents(CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance)), key, partition)


def _parents(resolver: CachingStaleStatusResolver, key: dg.AssetKey, partition: str | None) -> list[AssetPart]:
    found = resolver._get_partition_dependencies(key=AssetKeyPartitionKey(key, partition))
    return sorted(((part.asset_key, part.partition_key) for part in found), key=str)


def _files_gone(record: Any, metadata: Mapping[str, Any], workspace: Workspace) -> str | None:
    if "path" not in metadata:
        return None
    url = workspace.resolve(metadata["path"])
    try:
        found = provenance.read_provenance(url)["digest"]
    except FlextokError:
        return f"its files are gone from {url}"
    if found != data_version(record):
        return f"{url} holds {found[:12]} now, not {data_version(record)[:12]}"
    return None


def _step_failed(instance: dg.DagsterInstance, record: Any) -> bool:
    run = instance.get_run_by_id(record.run_id)
    if run is None or run.status is dg.DagsterRunStatus.SUCCESS:
        return False
    steps = instance.get_run_step_stats(record.run_id, [record.event_log_entry.step_key])
    return any(step.status is not None and step.status.value == "FAILURE" for step in steps)


def _source_changed(partition: str, recorded: str | None, list_source: Callable[[str], str]) -> list[str]:
    try:
        found = list_source(partition)
    except FlextokError as error:
        return [f"its source cannot be listed: {error}"]
    return [] if found == recorded else ["its source changed"]


def _settings_changed(metadata: Mapping[str, Any], now: dict[str, Any]) -> str:
    """The settings that differ from those on record, by name."""
    before = _flatten(json.loads(metadata.get("settings", "{}")))
    after = _flatten(now)
    changes = [
        f"{name}: {json.dumps(before.get(name))} -> {json.dumps(after.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if not changes:
        return "its code has another version"
    more = f" and {len(changes) - SHOWN_DIFFERENCES} more" if len(changes) > SHOWN_DIFFERENCES else ""
    return "settings changed: " + ", ".join(changes[:SHOWN_DIFFERENCES]) + more


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in _flatten(item, f"{prefix}.{key}" if prefix else key).items()
    }
