"""A small real asset graph whose code and data versions a test can turn, run by the real executor."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from flextok import storage
from flextok.errors import FlextokError
from flextok.provenance import make_provenance
from pipelines.execute import Executor
from pipelines.staleness import AssetState
from pipelines.workspace import Workspace

PARTS = ("c/train", "c/val")


@dataclass
class Chain:
    """source[train, val] -> shards[train, val] -> model (train only) -> tokens[train, val] -> report."""

    root: Path
    code: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    """Data version by label, `name` or `name[partition]`."""
    listing: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    unsound: set[str] = field(default_factory=set)
    """Labels whose blocking check does not hold."""
    ran: list[str] = field(default_factory=list)
    extra_dep: bool = False
    """Whether the report reads the model too."""
    is_added: bool = False
    """Whether it need not have."""

    def __post_init__(self) -> None:
        self.workspace = Workspace(str(self.root))
        self.instance = dg.DagsterInstance.ephemeral()

    def executor(self) -> Executor:
        return Executor(self.definitions(), self.instance, self, self.workspace)

    def settings(self, name: str, partition: str | None) -> dict:
        return {"section": {"version": self.code.get(name, "1")}}

    def recorded(self, name: str, partition: str | None, settings: dict, made_by: Mapping) -> dict:
        return settings

    def unchanged(self, name: str, partition: str | None, version: str | None) -> bool:
        return name != "source" or self.look(partition) == version

    def look(self, partition: str | None) -> str:
        if "unreachable" in self.listing:
            raise FlextokError("nothing there")
        return self.listing.get(partition or "", "listing-1")

    def added(self, name: str) -> frozenset[str]:
        return frozenset({"model"} if name == "report" and self.is_added else ())

    def refresh(self) -> list[str]:
        return self.executor().refresh()

    def survey(self) -> dict[str, AssetState]:
        return {state.label: state for state in self.executor().survey()}

    def must_run(self) -> set[str]:
        return {name for name, state in self.survey().items() if state.must_run}

    def definitions(self) -> dg.Definitions:
        parts = dg.StaticPartitionsDefinition(list(PARTS))

        def make(name: str, deps: list, partitioned: bool) -> dg.AssetsDefinition:
            spec = dg.AssetCheckSpec("sound", asset=name, blocking=True)
            version = self.code.get(name, "1")

            @dg.asset(
                name=name,
                deps=deps,
                code_version=version,
                partitions_def=parts if partitioned else None,
                check_specs=[spec],
            )
            def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
                label = f"{name}[{context.partition_key}]" if partitioned else name
                return self.build(name, label, context.partition_key if partitioned else None)

            return body

        train = dg.SpecificPartitionsPartitionMapping(PARTS[:1])
        both_tokens = dg.AssetDep("tokens", partition_mapping=dg.SpecificPartitionsPartitionMapping(PARTS))
        return dg.Definitions(
            assets=[
                make("source", [], True),
                make("shards", ["source"], True),
                make("model", [dg.AssetDep("shards", partition_mapping=train)], False),
                make("tokens", ["shards", "model"], True),
                make("report", [both_tokens, *(["model"] if self.extra_dep else [])], False),
            ],
            executor=dg.in_process_executor,
        )

    def build(self, name: str, label: str, partition: str | None) -> dg.MaterializeResult:
        self.ran.append(label)
        if label in self.broken:
            raise RuntimeError("out of luck")
        sound = dg.AssetCheckResult(check_name="sound", passed=label not in self.unsound, description="not sound")
        metadata = {"settings": json.dumps(self.settings(name, partition))}
        if name == "source":
            return dg.MaterializeResult(
                data_version=dg.DataVersion(self.look(partition)),
                metadata=metadata,
                check_results=[sound],
            )
        digest = self.data.get(label, "data-1")
        url = self.workspace.url(name, partition or "all")
        storage.write_json(storage.join(url, "provenance.json"), make_provenance(name, digest, [], {}, url))
        metadata["path"] = self.workspace.relative(url)
        return dg.MaterializeResult(data_version=dg.DataVersion(digest), metadata=metadata, check_results=[sound])
