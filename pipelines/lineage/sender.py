"""Sending the record on: to the receiver that OpenLineage's client is configured for, by its own means.

Those are OPENLINEAGE_URL, OPENLINEAGE_CONFIG, OPENLINEAGE__TRANSPORT__... and openlineage.yml; without any of them nothing
is sent. A thread sends what stands in the record behind the place that <workspace>/lineage/sent.json names: in order, each
event once or, if it is cut off in between, twice. A receiver that is down is asked again at the next event, the next command
or the next look of Dagster's daemon.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flextok import storage
from flextok.runtime import interrupts
from flextok.runtime.lock import LockedError, locked
from pipelines.lineage import record
from pipelines.lineage.events import run_event
from pipelines.lineage.quietly import warn_once
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient

END_WAIT_S = 2.0
NO_RETRY = {"total": 0}

_senders: dict[str, "Sender"] = {}


class Sender:
    """The thread of this process that sends one workspace's events. Get it by `sender_of`."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace
        self._thread: threading.Thread | None = None
        self._more = False
        self._one_at_a_time = threading.Lock()

    def wake(self) -> None:
        """Have the thread send what is outstanding."""
        if not _may_be_configured():
            return
        with self._one_at_a_time:
            self._more = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lineage-sender", daemon=True)
                self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until it was sent or cannot be, `seconds` at the most."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
            if thread.is_alive():
                self._warn(f"not within {seconds:.0f} s")

    def _run(self) -> None:
        while self._goes_on():
            try:
                send_outstanding(self._workspace)
            except Exception as error:  # noqa: BLE001 - whatever a transport raises: the events are in the file
                self._warn(_reason(error))

    def _goes_on(self) -> bool:
        with self._one_at_a_time:
            if not self._more:
                self._thread = None
                return False
            self._more = False
            return True

    def _warn(self, reason: str) -> None:
        url = record.events_url(self._workspace)
        warn_once(f"lineage events wait in {url} for their receiver and are sent later ({reason})", f"send {url}")


def sender_of(workspace: Workspace) -> Sender:
    """The one sender of this process for a workspace."""
    return _senders.setdefault(workspace.root, Sender(workspace))


@contextlib.contextmanager
def sending(workspace: Workspace) -> Iterator[None]:
    """Send while the block runs, and for `END_WAIT_S` more at the most."""
    sender = sender_of(workspace)
    sender.wake()
    try:
        yield
    finally:
        if not interrupts.pending():  # a command that is told to end does
            sender.wake()
            sender.wait(END_WAIT_S)


def send_outstanding(workspace: Workspace) -> None:
    """Send all events behind the last that was sent; raises what the transport does when the receiver takes one not.

    Does nothing where no receiver is configured, or another process sends: that one looks again when it is done.
    """
    client = _configured_client()
    if client is None:
        return
    seen, end = -1, record.size(workspace)
    try:
        while end != seen and _sent(workspace, end) != end:
            with locked(record.folder_url(workspace)):
                _send(client, workspace, _sent(workspace, end))
            seen, end = end, record.size(workspace)
    except LockedError:
        return
    finally:
        client.close()


def _send(client: "OpenLineageClient", workspace: Workspace, start: int) -> None:
    for end, event in record.events_after(workspace, start):
        client.emit(run_event(event))
        storage.write_json(_sent_url(workspace), {"bytes": end})


def _sent(workspace: Workspace, all_bytes: int) -> int:
    """Bytes of the record that were sent; none of a record that is another one by now."""
    url = _sent_url(workspace)
    sent = int(storage.read_json(url)["bytes"]) if storage.exists(url) else 0
    return sent if sent <= all_bytes else 0


def _sent_url(workspace: Workspace) -> str:
    return storage.join(record.folder_url(workspace), "sent.json")


def _may_be_configured() -> bool:
    """A cheap look at where the client finds its configuration: importing it takes half a second."""
    files = ("openlineage.yml", os.path.expanduser("~/.openlineage/openlineage.yml"))
    return any(name.startswith("OPENLINEAGE_") for name in os.environ) or any(map(os.path.isfile, files))


def _configured_client() -> "OpenLineageClient | None":
    """The client as its configuration says; None where that names no receiver (it would print the events)."""
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport import get_default_factory
    from openlineage.client.transport.http import HttpTransport
    from openlineage.client.transport.http_common import DEFAULT_RETRY_CONFIG
    from openlineage.client.transport.noop import NoopConfig, NoopTransport

    # What it logs, such as each failure of one of several transports, is no notice of a command's.
    logging.getLogger("openlineage").addHandler(logging.NullHandler())
    transport = OpenLineageClient(transport=NoopTransport(NoopConfig())).config.transport or {}
    if not transport.get("type") and not os.environ.get("OPENLINEAGE_URL"):
        return None
    client = OpenLineageClient()
    if client.transport.kind == NoopTransport.kind:
        return None
    if client.transport.kind == "async_http":  # it would take events that it may lose; this thread waits for nobody
        client.close(0)
        client = OpenLineageClient(transport=get_default_factory().create({**transport, "type": "http"}))
    if isinstance(client.transport, HttpTransport) and client.transport.config.retry == DEFAULT_RETRY_CONFIG:
        client.transport.config.retry = NO_RETRY  # the record is kept for a better time
    location = client.config.facets.source_code_location
    # Else it tells of the repository in which the sender happens to stand, by a URL that may hold a password.
    location.disabled = location.disabled or location.repo_url is None
    return client


def _reason(error: Exception) -> str:
    """Why the receiver did not take an event. Messages about HTTP hold the URL with its query, so they are left out."""
    from requests import RequestException

    if not isinstance(error, RequestException):
        return " ".join(str(error).split()) or type(error).__name__
    response = error.response
    return type(error).__name__ if response is None else f"HTTP {response.status_code} {response.reason}"
