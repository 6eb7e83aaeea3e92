"""A receiver of OpenLineage events on loopback, and the specification of facets as the client's classes have it."""

import contextlib
import importlib
import json
import pkgutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attr
from openlineage.client import generated
from openlineage.client.generated import base


@dataclass
class Receiver:
    """What a receiver was sent, and how it answers."""

    url: str = ""
    status: int = 201
    hangs: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def receiving(port: int = 0, status: int = 201, hangs: bool = False) -> Iterator[Receiver]:
    """A receiver on a `port` of loopback."""
    receiver = Receiver(status=status, hangs=hangs)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if receiver.hangs:
                receiver.ended.wait()
                return
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if receiver.status < 300:
                receiver.events.append(json.loads(body))
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _classes() -> dict[str, type]:
    modules = [
        importlib.import_module(f"{generated.__name__}.{item.name}")
        for item in pkgutil.iter_modules(generated.__path__)
    ]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {value._get_schema(): value for value in found if issubclass(value, base.BaseFacet)}


FACETS = _classes()


def check_event(event: Mapping[str, Any]) -> None:
    """Every facet is one of the specification, has its fields, and stands where it may."""
    check_facets(event["run"]["facets"], base.RunFacet)
    check_facets(event["job"]["facets"], base.JobFacet)
    for item in event["inputs"]:
        check_facets(item["facets"], base.DatasetFacet)
        check_facets(item["inputFacets"], base.InputDatasetFacet)
    for item in event["outputs"]:
        check_facets(item["facets"], base.DatasetFacet)
        check_facets(item["outputFacets"], base.OutputDatasetFacet)


def check_facets(facets: Mapping[str, Mapping[str, Any]], kind: type) -> None:
    for name, facet in facets.items():
        known = FACETS[facet["_schemaURL"]]
        assert issubclass(known, kind), f"{name} may not stand there"
        assert name.lower() in known.__name__.lower()
        required = {item.name for item in attr.fields(known) if item.default is attr.NOTHING}
        assert required <= set(facet) <= {item.name for item in attr.fields(known)}
        assert facet["_producer"].startswith("urn:flextok-pipelines:")
