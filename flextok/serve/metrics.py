"""What a server counts, as Prometheus reads it."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("flextok_requests", "Answered requests.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "flextok_generate_seconds",
            "Time of POST /generate, from its first byte to the answer's last.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "flextok_batch_images", "Images drawn at once.", buckets=IMAGES, registry=self.registry
        )
        self.gone = Counter("flextok_clients_gone", "Clients that left before their image.", registry=self.registry)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Tell how many images wait."""
        gauge = Gauge("flextok_waiting", "Images that wait to be drawn.", registry=self.registry)
        gauge.set_function(waiting)

    def text(self) -> bytes:
        """All of them in the text format, version 0.0.4."""
        return generate_latest(self.registry)


class Counted:
    """Counts the answers of `app`, and gives each what a browser is to know of it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str], headers: dict[str, str]):
        self._app, self._metrics, self._paths = app, metrics, paths
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        started = time.monotonic()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path, message["status"]).inc()
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        try:
            await self._app(scope, receive, counting)
        finally:
            if path == "/generate":
                self._metrics.seconds.observe(time.monotonic() - started)
