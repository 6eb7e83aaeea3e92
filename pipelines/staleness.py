"""What is out of date, and why: the one judge for `status`, `refresh`, the schedule and the sensors.

It stands on Dagster's records of what was made, on the provenance beside the files and on the deciding settings:

- missing: never made; or its files are gone, or hold another artifact by now;
- stale: made with other settings (code version), or what it read directly has another data version by now; a code version
  that differs only because an earlier version of the code wrote it, by settings that decide the same, is none;
- stale: the step that made it failed after all (Dagster records a result whose blocking check did not hold);
- an asset that only looks at the outside world is stale when what is there differs from what is recorded.

Staleness is one edge deep: whether what depends on a stale asset must run is known only once that is rebuilt, and
it need not when the new data is the old. Until then `survey` says what such an asset waits for.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import dagster as dg

from flextok import provenance
from flextok.errors import FlextokError
from pipelines.graph import AssetPart, Graph, label
from pipelines.workspace import Workspace

SHOWN_DIFFERENCES = 3
DATA_VERSION = "dagster/data_version"
CODE_VERSION = "dagster/code_version"
INPUT_VERSION = "dagster/input_data_version/"


class Facts(Protocol):
    """What a survey asks about stages, by their names."""

    def settings(self, stage: str, partition: str | None) -> dict[str, Any]:
        """The deciding settings that a stage reads now."""
        ...

    def recorded(
        self, stage: str, partition: str | None, settings: dict[str, Any], made_by: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Settings on record in today's shape; `made_by` is the recipe in the provenance of what was made."""
        ...

    def unchanged(self, stage: str, partition: str | None, version: str | None) -> bool:
        """Whether what the stage looks at outside is what a data version stands for. FlextokError where it cannot look."""
        ...

    def added(self, stage: str) -> frozenset[str]:
        """Stages that it reads by now, and whose results it worked out itself before: those made so remain valid."""
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


def survey(graph: Graph, instance: dg.DagsterInstance, facts: Facts, workspace: Workspace) -> list[AssetState]:
    """The state of every asset and partition, in an order in which they could be built."""
    records: dict[AssetPart, Any | None] = {}
    states: dict[AssetPart, AssetState] = {}
    for key in graph.keys:
        for partition in graph.partitions(key):
            record = records[key, partition] = latest_record(instance, key, partition)
            reads = graph.reads(key, partition)
            metadata = metadata_of(record)
            if record is None:
                status, reasons = "missing", ["it was never made"]
            else:
                block, gone = _provenance(record, metadata, workspace)
                reasons = _settings_changed((key, partition), metadata, facts, block.get("recipe") or {})
                if not reasons and _stage_version(graph.code_version(key)) != _stage_version(_code_version(record)):
                    reasons = ["its code has another version"]
                reasons += _inputs_changed(instance, record, reads, records, facts.added(key.path[-1]))
                status = "stale" if reasons else "fresh"
                if gone:
                    status, reasons = "missing", [gone]
                if _step_failed(instance, record):
                    status, reasons = "stale", ["the run that made it failed (a check did not hold)"]
                if status == "fresh":
                    reasons = _why_outside(facts, key.path[-1], partition, record)
                    status = "stale" if reasons else "fresh"
            waits = tuple(
                states[part].label for parts in reads.values() for part in parts if states[part].status != "fresh"
            )
            if waits and status == "fresh":
                status = "stale"
            states[key, partition] = AssetState(
                key, partition, status, tuple(reasons), waits, data_version(record), metadata.get("dagster/uri")
            )
    return list(states.values())


def next_wave(graph: Graph, states: Sequence[AssetState]) -> list[AssetState]:
    """What a refresh runs at once: all that must run but what depends on some of it.

    That is judged anew when it has run: it may turn out to be fresh.
    """
    work = [state for state in states if state.must_run]
    keys = {state.key for state in work}
    return [state for state in work if not graph.ancestors(state.key) & keys]


def latest_record(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None, before: int | None = None
) -> Any | None:
    """Dagster's record of the latest materialization (older than the record `before`), None when there is none."""
    parts = [partition] if partition else None
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=parts, before_storage_id=before)
    records = instance.fetch_materializations(wanted, limit=1).records
    return records[0] if records else None


def metadata_of(record: Any | None) -> dict[str, Any]:
    """The plain values of a record's metadata."""
    if record is None:
        return {}
    return {name: entry.value for name, entry in record.asset_materialization.metadata.items()}


def data_version(record: Any | None) -> str | None:
    """The digest a record stands for."""
    return record.asset_materialization.tags.get(DATA_VERSION) if record else None


def checks_of(instance: dg.DagsterInstance, run_id: str, part: AssetPart) -> list[dg.AssetCheckEvaluation]:
    """The checks of `part` in the run that made it. A run makes one partition, which Dagster does not name beside a check."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    events = [record.event_log_entry.dagster_event for record in records]
    checks = [event.asset_check_evaluation_data for event in events if event is not None]
    return [check for check in checks if check.asset_key == part[0] and check.partition in (None, part[1])]


def _inputs_changed(
    instance: dg.DagsterInstance,
    record: Any,
    reads: Mapping[dg.AssetKey, list[AssetPart]],
    records: Mapping[AssetPart, Any | None],
    added: frozenset[str],
) -> list[str]:
    """Which of its inputs have another data version than those that were read for `record`. It may be from before it read
    those of the stages `added`.

    Dagster tags a result with the data version of each input; of partitions with the SHA-256 of all versions in a row.
    """
    tags = record.asset_materialization.tags
    reasons = []
    for parent, parts in reads.items():
        was = tags.get(INPUT_VERSION + parent.to_user_string())
        versions = {part: data_version(records[part]) for part in parts}
        if was is None and parent.path[-1] in added:
            continue
        if was is None:
            reasons.append(f"it has a new dependency on {parent.path[-1]}")
        elif None not in versions.values() and was != _joint_version(versions):
            then = {part: data_version(latest_record(instance, *part, before=record.storage_id)) for part in parts}
            changed = [part for part in parts if then[part] != versions[part]] or parts
            reasons += [f"{label(*part)} has other data" for part in changed]
    former = {name.removeprefix(INPUT_VERSION) for name in tags if name.startswith(INPUT_VERSION)}
    gone = former - {parent.to_user_string() for parent in reads}
    return reasons + [f"it does not depend on {name.rpartition('/')[2]} any more" for name in sorted(gone)]


def _joint_version(versions: Mapping[AssetPart, str | None]) -> str:
    texts = [version or "" for version in versions.values()]
    (_, partition), *_ = versions
    return texts[0] if partition is None else hashlib.sha256("".join(texts).encode()).hexdigest()


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


def outside_changed(facts: Facts, stage: str, partition: str | None, record: Any | None) -> bool:
    """Whether what the stage looks at is not what was recorded; raises FlextokError where it cannot be looked at."""
    return not facts.unchanged(stage, partition, data_version(record))


def _why_outside(facts: Facts, stage: str, partition: str | None, record: Any) -> list[str]:
    try:
        return ["its source or its settings changed"] if outside_changed(facts, stage, partition, record) else []
    except FlextokError as error:
        return [f"its source cannot be listed: {error}"]


def _settings_changed(
    part: AssetPart, metadata: Mapping[str, Any], facts: Facts, made_by: Mapping[str, Any]
) -> list[str]:
    """Which settings decide otherwise now; none where they are only written in another way."""
    stage, partition = part[0].path[-1], part[1]
    known, now = json.loads(metadata.get("settings", "{}")), facts.settings(stage, partition)
    if known == now:
        return []
    before, after = _flatten(facts.recorded(stage, partition, known, made_by)), _flatten(now)
    changes = [
        f"{name}: {json.dumps(before.get(name))} -> {json.dumps(after.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    more = f" and {len(changes) - SHOWN_DIFFERENCES} more" if len(changes) > SHOWN_DIFFERENCES else ""
    return ["settings changed: " + ", ".join(changes[:SHOWN_DIFFERENCES]) + more] if changes else []


def _code_version(record: Any) -> str:
    return record.asset_materialization.tags.get(CODE_VERSION, "")


def _stage_version(code_version: str) -> str:
    """Of the code version, the part that is not the digest of the settings."""
    return code_version.partition("+")[0]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in _flatten(item, f"{prefix}.{key}" if prefix else key).items()
    }
