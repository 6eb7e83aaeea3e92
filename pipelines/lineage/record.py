"""The record of a workspace's runs: <workspace>/lineage/events.jsonl, one event a line, in the order they were told."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flextok import storage
from flextok.runtime.lock import LockedError, locked
from pipelines.workspace import Workspace

ENDS = ("COMPLETE", "FAIL", "ABORT")
APPEND_WAIT_S = 5.0
APPEND_POLL_S = 0.1

Event = dict[str, Any]


def folder_url(workspace: Workspace) -> str:
    """Where the record lies, and how far it was sent."""
    return workspace.url("lineage")


def events_url(workspace: Workspace) -> str:
    """The file of events."""
    return storage.join(folder_url(workspace), "events.jsonl")


def append(workspace: Workspace, lines: Sequence[str]) -> None:
    """Add events at the end; other processes may do the same."""
    url = events_url(workspace)
    content = "".join(line + "\n" for line in lines).encode()
    if storage.is_local(url):
        _append_to_file(storage.local_path(url), content)
        return
    # A store's files are put whole: two writers at once would lose what one of them adds.
    with _turn(storage.join(folder_url(workspace), "append")):
        before = storage.read_bytes(url) if storage.exists(url) else b""
        storage.write_bytes(url, before + content)


def size(workspace: Workspace) -> int:
    """Bytes of all events."""
    url = events_url(workspace)
    return storage.size(url) if storage.exists(url) else 0


def events_after(workspace: Workspace, start: int) -> Iterator[tuple[int, Event]]:
    """Every event behind the first `start` bytes, with the number of bytes up to its end."""
    url = events_url(workspace)
    if not storage.exists(url):
        return
    with storage.open_read(url) as file:
        end = file.seek(start)
        for line in file:
            end += len(line)
            # A line that a full disk or a crash cut short is no event.
            with contextlib.suppress(ValueError):
                yield end, json.loads(line)


def unfinished(workspace: Workspace) -> list[Event]:
    """The START events of runs whose end was not told."""
    started: dict[str, Event] = {}
    for _, event in events_after(workspace, 0):
        run = event["run"]["runId"]
        if event["eventType"] == "START":
            started[run] = event
        elif event["eventType"] in ENDS:
            started.pop(run, None)
    return list(started.values())


def _append_to_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            content = b"\n" + content  # behind a line that was cut short
        # One write of whole lines, if the disk takes it: no reader sees half an event, no writer comes in between.
        while content:
            content = content[file.write(content) :]


@contextlib.contextmanager
def _turn(url: str) -> Iterator[None]:
    """Hold `url` while the block runs; raises LockedError when others hold it for too long."""
    until = time.monotonic() + APPEND_WAIT_S
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(url))
                break
            except LockedError:
                if time.monotonic() > until:
                    raise
                time.sleep(APPEND_POLL_S)
        yield
