"""What is out of date, and why. The only module that touches Dagster's private staleness resolver.

Dagster's rules, and what is added to them here:

- missing: never materialized; or its files are gone, or hold another artifact by now;
- stale: made with other settings (code version), or a direct input has another data version; a code version that differs
  only because an earlier version of the code wrote it, by settings that decide the same, is none;
- stale: the step that made it failed after all (Dagster records a result whose blocking check did not hold);
- an asset that only looks at the outside world is stale when what is there differs from what is recorded.

Staleness is one edge deep: whether what depends on a stale asset must run is known only once that is rebuilt, and
it need not when the new data is the old. Until then `survey` says what such an asset waits for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.loader import LoadingContextForTest

from flextok import provenance
from flextok.errors import FlextokError
from pipelines.workspace import Workspace

SHOWN_DIFFERENCES = 3
AssetPart = tuple[dg.AssetKey, str | None]


class Facts(Protocol):
    """What a survey asks about stages, by their names."""

    def settings(self, stage: str) -> dict[str, Any]:
        """The deciding settings that a stage reads now."""
        ...

    def recorded(self, stage: str, settings: dict[str, Any], made_by: Mapping[str, Any]) -> dict[str, Any]:
        """Settings on record in today's shape; `made_by` is the recipe in the provenance of what was made."""
        ...

    def observe(self, stage: str, partition: str | None) -> str | None:
        """The digest of what the stage looks at outside, now; None for one that does not. FlextokError where it cannot."""
        ...


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


def survey(defs: dg.Definitions, instance: dg.DagsterInstance, facts: Facts, workspace: Workspace) -> list[AssetState]:
    """The state of every asset and partition, in an order in which they could be built."""
    graph = defs.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    states: dict[AssetPart, AssetState] = {}
    for key in graph.toposorted_asset_keys:
        for partition in partitions_of(graph, key):
            record = latest_record(instance, key, partition)
            metadata = metadata_of(record)
            reasons = ["it was never made"]
            status = "missing"
            if record is not None:
                block, gone = _provenance(record, metadata, workspace)
                made_by = block.get("recipe") or {}
                reasons = []
                for cause in _causes(resolver, key, partition):
                    if cause.category.value == "CODE":
                        reasons += _code_changed(record, graph.get(key), metadata, facts, made_by)
                    elif cause.category.value == "DATA" and cause.dependency is not None:
                        depends_on = label(cause.dependency.asset_key, cause.dependency.partition_key)
                        reasons.append(f"{depends_on} has other data")
                    else:
                        reasons.append(f"it {cause.reason}")
                status = "stale" if reasons else "fresh"
                if gone:
                    status, reasons = "missing", [gone]
                if _step_failed(instance, record):
                    status, reasons = "stale", ["the run that made it failed (a check did not hold)"]
                if status == "fresh":
                    reasons = _outside_changed(key.path[-1], partition, data_version(record), facts)
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


def _causes(resolver: CachingStaleStatusResolver, key: dg.AssetKey, partition: str | None) -> Sequence[Any]:
    if resolver.get_status(key, partition) is not StaleStatus.STALE:
        return []
    return resolver.get_stale_causes(key, partition)


def _provenance(record: Any, metadata: Mapping[str, Any], workspace: Workspace) -> tuple[dict[str, Any], str | None]:
    """The provenance of what was made, and what is wrong with its files."""
    if "path" not in metadata:
        return {}, None
    url = workspace.resolve(metadata["path"])
    try:
        block = provenance.read_provenance(url)
    except FlextokError:
        return {}, f"its files are gone from {url}"
    expected = data_version(record) or ""
    if block["digest"] != expected:
        return block, f"{url} holds {block['digest'][:12]} now, not {expected[:12]}"
    return block, None


def _step_failed(instance: dg.DagsterInstance, record: Any) -> bool:
    run = instance.get_run_by_id(record.run_id)
    if run is None or run.status is dg.DagsterRunStatus.SUCCESS:
        return False
    steps = instance.get_run_step_stats(record.run_id, [record.event_log_entry.step_key])
    return any(step.status is not None and step.status.value == "FAILURE" for step in steps)


def _outside_changed(stage: str, partition: str | None, recorded: str | None, facts: Facts) -> list[str]:
    try:
        found = facts.observe(stage, partition)
    except FlextokError as error:
        return [f"its source cannot be listed: {error}"]
    return [] if found in (None, recorded) else ["its source changed"]


def _code_changed(
    record: Any, node: Any, metadata: Mapping[str, Any], facts: Facts, made_by: Mapping[str, Any]
) -> list[str]:
    """Why the code version differs from the one on record; nothing where it is only written in another way."""
    stage = node.key.path[-1]
    known = json.loads(metadata.get("settings", "{}"))
    before, after = _flatten(facts.recorded(stage, known, made_by)), _flatten(facts.settings(stage))
    changes = [
        f"{name}: {json.dumps(before.get(name))} -> {json.dumps(after.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if changes:
        more = f" and {len(changes) - SHOWN_DIFFERENCES} more" if len(changes) > SHOWN_DIFFERENCES else ""
        return ["settings changed: " + ", ".join(changes[:SHOWN_DIFFERENCES]) + more]
    recorded = record.asset_materialization.tags.get("dagster/code_version", "")
    return [] if _stage_version(recorded) == _stage_version(node.code_version) else ["its code has another version"]


def _stage_version(code_version: str) -> str:
    return code_version.partition("+")[0]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in _flatten(item, f"{prefix}.{key}" if prefix else key).items()
    }
