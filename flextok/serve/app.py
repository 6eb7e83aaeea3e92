"""The routes: POST /generate, GET /health, /metrics, and a page to try it."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from flextok.errors import FlextokError, UsageError
from flextok.serve.engine import Busy, Drawn, Ending, Engine, Job
from flextok.serve.metrics import Counted, Metrics
from flextok.serve.request import BODY_BYTES, parse_request, read_request

PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
PATHS = frozenset({"/generate", "/health", "/metrics", *FILES})
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
BODY_S = 10.0
READ_BYTES = 16 * BODY_BYTES


class Refused(Exception):
    """An answer other than 200, with its line."""

    def __init__(self, status: int, line: str, headers: dict[str, str] | None = None):
        self.status, self.line, self.headers = status, line, headers

    def response(self) -> JSONResponse:
        """The line as JSON."""
        return JSONResponse({"error": self.line}, self.status, self.headers)


def make_app(engine: Engine, metrics: Metrics, hosts: Sequence[str]) -> Starlette:
    """The app; requests that name another host than one of `hosts` ("*" for any) are refused, as those of pages are
    which let a name of theirs mean this machine."""
    metrics.watch_queue(lambda: engine.waiting)

    async def generate(request: Request) -> Response:
        try:
            job = await _submit(request, engine)
            if job.request.stream:
                return _Events(job, engine, metrics)
            with _left(job, engine):
                drawn = await _first(job, request)
        except Refused as refused:
            return refused.response()
        if drawn is None:
            metrics.gone.inc()
            return Response(status_code=499)  # nobody reads it
        if drawn.png is not None:
            return Response(drawn.png, media_type="image/png")
        return JSONResponse({"keep": drawn.keep, "tokens": drawn.ids})

    async def health(_request: Request) -> JSONResponse:
        prior = engine.prior.config
        about = {
            "status": "ok" if engine.is_alive else "ending",
            "prior": engine.prior.digest,
            "tokenizer": engine.tokenizer.digest,
            "condition": prior.condition,
            "classes": prior.num_classes,
            "positions": prior.num_tokens,
            "waiting": engine.waiting,
        }
        return JSONResponse(about, 200 if engine.is_alive else 503)

    async def told(_request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(request: Request) -> FileResponse:
        return FileResponse(PAGE / FILES[request.url.path])

    return Starlette(
        routes=[
            Route("/generate", generate, methods=["POST"]),
            Route("/health", health),
            Route("/metrics", told),
            *(Route(path, page) for path in FILES),
        ],
        middleware=[
            Middleware(Counted, metrics=metrics, paths=PATHS, headers=HEADERS),  # pyright: ignore[reportArgumentType]
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
    )


async def _submit(request: Request, engine: Engine) -> Job:
    """The job of a request; raises Refused."""
    # Another type is what a page of another site may send without asking; for this one a browser asks first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "expected Content-Type application/json, found another")
    body = await _body(request)
    try:
        values = read_request(body)
    except UsageError as error:
        raise Refused(400, str(error)) from None
    try:
        return engine.submit(parse_request(values, engine.prior.config))
    except UsageError as error:
        raise Refused(422, str(error)) from None
    except Busy as error:
        raise Refused(429, str(error), {"Retry-After": str(error.retry_after_s)}) from None
    except Ending as error:
        raise Refused(503, str(error)) from None


async def _body(request: Request) -> bytes:
    """The body; raises Refused. One that is too large is read a while all the same: a client that still sends when the
    connection is closed never reads its answer."""
    size, body = int(request.headers.get("content-length", 0)), bytearray()  # the protocol's parser takes digits alone
    too_large = Refused(
        413, f"expected a body of at most {BODY_BYTES} bytes, found a larger one", {"Connection": "close"}
    )
    if size > READ_BYTES:
        raise too_large
    read = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                read += len(chunk)
                if read <= BODY_BYTES:
                    body += chunk
                if read > READ_BYTES:
                    break
    except TimeoutError:
        if max(size, read) <= BODY_BYTES:
            raise Refused(408, f"expected the whole body within {BODY_S:.0f} s", {"Connection": "close"}) from None
    if max(size, read) > BODY_BYTES:
        raise too_large
    return bytes(body)


@contextlib.contextmanager
def _left(job: Job, engine: Engine) -> Iterator[None]:
    """Whatever ends the block, the job's place is free."""
    try:
        yield
    finally:
        engine.leave(job)


async def _first(job: Job, request: Request) -> Drawn | None:
    """The image, or None where the client has gone; raises Refused."""
    event = asyncio.ensure_future(job.events.get())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not event.done():
            return None
        found = event.result()
    finally:
        event.cancel()
        gone.cancel()
    if isinstance(found, Exception):
        raise Refused(503 if isinstance(found, Ending) else 500, line_of(found))
    return found


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Events(StreamingResponse):
    """Server-sent events: `preview` for each stage, `done` for the last, or `error`."""

    def __init__(self, job: Job, engine: Engine, metrics: Metrics):
        super().__init__(self._told(), media_type="text/event-stream")
        self._job, self._engine, self._metrics = job, engine, metrics
        self._has_ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; here rather than in the generator, which does not begin where the client has gone by then."""
        try:
            with _left(self._job, self._engine):
                await super().__call__(scope, receive, send)
        finally:
            if not self._has_ended:
                self._metrics.gone.inc()

    async def _told(self) -> AsyncIterator[str]:
        while not self._has_ended:
            found = await self._job.events.get()
            if isinstance(found, Exception):
                self._has_ended = True
                yield _event("error", {"error": line_of(found)})
            else:
                self._has_ended = found.is_last
                png = {} if found.png is None else {"png": base64.b64encode(found.png).decode()}
                yield _event("done" if found.is_last else "preview", {"keep": found.keep, "tokens": found.ids, **png})


def _event(name: str, value: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n"


def line_of(error: Exception) -> str:
    """One line of an error; what was not foreseen is told by its kind alone, since it may hold paths."""
    return str(error) if isinstance(error, FlextokError) else f"the image could not be drawn: {type(error).__name__}"
