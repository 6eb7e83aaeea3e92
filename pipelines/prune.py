"""Which artifacts of a workspace nothing stands on any more, and their removal.

Kept are the current ones (the latest that Dagster records of each asset and partition, of every profile), what an alias
stands for, the newest of each folder, those not older than asked for, and whatever any of these was made of. Partial results
of evaluations are kept for one that is at work, and for one that was ended and no other was stored since.
"""

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flextok import storage
from flextok.aliases import alias_names, promotions
from flextok.errors import FlextokError, UsageError
from flextok.provenance import DOCUMENTS, artifacts_in, read_provenance
from flextok.runtime.lock import is_held
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    import dagster as dg

CURRENT, NEWEST, YOUNG = "current", "newest of its folder", "not old enough"
AT_WORK, UNFINISHED = "an evaluation is at work on it", "the same evaluation resumes with it"
PARTS_KIND = "parts of an evaluation"
FOLDERS = ("corpora/*", "checkpoints/*", "tokens/*/*", "text_features/*/*", "samples", "reference", "evaluation")
"""Where artifacts lie."""


@dataclass(frozen=True)
class Judged:
    """An artifact, and why it is kept; "" where it is not."""

    url: str
    kind: str
    digest: str
    size: int
    kept: str


def judge(
    workspace: Workspace, current: set[str], keep_last: int, older_than: datetime.timedelta | None
) -> list[Judged]:
    """All artifacts, in the order of their folders. `current` are URLs."""
    found: dict[str, dict[str, Any]] = {}
    kept: dict[str, str] = {}
    for folder in _folders(workspace):
        here = {url: read_provenance(url) for url in artifacts_in(folder)}
        found |= here
        by_age = sorted(here, key=lambda url: here[url]["created"], reverse=True)
        # A split of a corpus is always made in its place, and has no older ones beside it.
        newest = by_age if keep_last and folder.startswith(workspace.url("corpora/")) else by_age[:keep_last]
        kept |= dict.fromkeys(newest, NEWEST)
        for name in alias_names(folder):
            kept[storage.join(folder, promotions(folder, name)[-1].artifact)] = f"promoted as {name}"
    if older_than is not None:
        limit = datetime.datetime.now(datetime.UTC) - older_than
        young = (url for url, block in found.items() if datetime.datetime.fromisoformat(block["created"]) > limit)
        kept = dict.fromkeys(young, YOUNG) | kept
    kept |= dict.fromkeys(current & found.keys(), CURRENT)
    _keep_what_they_need(found, kept)
    artifacts = [
        Judged(url, block["kind"], block["digest"], storage.total_bytes(url), kept.get(url, ""))
        for url, block in found.items()
    ]
    return artifacts + _judged_parts(workspace, found, keep_last, older_than)


def _judged_parts(
    workspace: Workspace, found: Mapping[str, dict[str, Any]], keep_last: int, older_than: datetime.timedelta | None
) -> list[Judged]:
    """Partial results of evaluations. Those that nobody works on are left by one that was ended: it resumes with them, unless
    a later one took its place."""
    from flextok.evaluate.parts import folders_of_parts, last_written

    parent = workspace.url("evaluation")
    stored = [
        datetime.datetime.fromisoformat(block["created"])
        for url, block in found.items()
        if url.startswith(f"{parent}/")
    ]
    limit = None if older_than is None else datetime.datetime.now(datetime.UTC) - older_than

    def why_kept(url: str) -> str:
        written = last_written(url)
        if is_held(url):
            return AT_WORK
        if written is None:
            return ""
        if limit is not None and written > limit:
            return YOUNG
        return UNFINISHED if keep_last and all(written > each for each in stored) else ""

    return [
        Judged(url, PARTS_KIND, url.rpartition("/")[2], storage.total_bytes(url), why_kept(url))
        for url in folders_of_parts(parent)
    ]


def current_artifacts(workspace: Workspace, instance: "dg.DagsterInstance") -> set[str]:
    """URLs of what Dagster recorded last, for each asset and partition of all profiles."""
    from pipelines.staleness import latest_record, metadata_of

    records = (
        latest_record(instance, key, partition)
        for key in instance.all_asset_keys()
        for partition in (None, *instance.get_materialized_partitions(key))
    )
    return {workspace.resolve(path) for record in records if (path := metadata_of(record).get("path"))}


def require_idle(instance: "dg.DagsterInstance") -> None:
    """Raises FlextokError while a run of Dagster's is at work or waits to be: it may need what is to be removed."""
    import dagster as dg

    from pipelines.automation import UNFINISHED

    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED), limit=1):
        raise FlextokError(
            f"expected no run at work in the workspace, found {run.run_id[:8]} ({run.status.value}); wait for it or "
            "cancel it in the UI"
        )


def remove(artifact: Judged) -> None:
    """Delete it. What says that it is there goes last, so that an interrupted removal is found by the next one."""
    for name in storage.list_names(artifact.url):
        if name not in DOCUMENTS:
            storage.remove(storage.join(artifact.url, name))
    storage.remove(artifact.url)


def _folders(workspace: Workspace) -> Iterator[str]:
    for pattern in FOLDERS:
        folders = [workspace.root]
        for part in pattern.split("/"):
            names = [(folder, name) for folder in folders for name in (_subfolders(folder) if part == "*" else [part])]
            folders = [storage.join(folder, name) for folder, name in names]
        yield from folders


def _subfolders(folder: str) -> list[str]:
    return [name for name in storage.list_names(folder) if not name.startswith(".")]


def _keep_what_they_need(found: Mapping[str, dict[str, Any]], kept: dict[str, str]) -> None:
    """Adds to `kept` what any of it was made of, at any distance, wherever in the workspace it lies."""
    places: dict[tuple[str, str], list[str]] = {}
    for url, block in found.items():
        places.setdefault((block["kind"], block["digest"]), []).append(url)
    todo = [url for url in kept if url in found]
    while todo:
        block = found[todo.pop()]
        for item in block["inputs"]:
            for url in places.get((item["kind"], item["digest"]), []):
                if url not in kept:
                    kept[url] = f"{block['kind']} {block['digest'][:12]} was made of it"
                    todo.append(url)


def require_records(workspace: Workspace) -> None:
    """Raises UsageError where Dagster has no records of the workspace on this machine, which say what is current."""
    if not workspace.has_records:
        raise UsageError(
            f"expected Dagster's records of {workspace.root} in {workspace.dagster_home}, found none, so that nothing says "
            "what is current; give --keep-last N to keep the newest N of each folder, or another --workspace"
        )
