"""HTTP by hand, so that a test decides what is sent, what is read and when a connection is cut."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and value of each server-sent event."""
        parts = [event.split("\n") for event in self.body.decode().split("\n\n") if event]
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


def request_bytes(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request on a connection of its own."""
    fields = {"Host": "127.0.0.1", "Connection": "close", "Content-Length": str(len(body)), **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def send(url: str, content: bytes) -> Answer:
    """What the server answers to these bytes."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(content)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.read()
    finally:
        writer.close()
    return Answer(int(head[0].split()[1]), headers, _joined(body) if "transfer-encoding" in headers else body)


def _joined(chunked: bytes) -> bytes:
    parts = []
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        chunked = rest[int(size, 16) + 2 :]
    return b"".join(parts)


async def generate(url: str, **values: Any) -> Answer:
    """POST /generate."""
    return await send(url, asking(**values))


def asking(**values: Any) -> bytes:
    return request_bytes("POST", "/generate", json.dumps(values).encode(), Content_Type="application/json")


async def get(url: str, path: str, **headers: str) -> Answer:
    return await send(url, request_bytes("GET", path, **headers))
