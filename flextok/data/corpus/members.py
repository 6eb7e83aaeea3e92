"""Members of our own shards, read in a stream from start to end."""

from collections.abc import Iterator
from typing import Protocol

from flextok.data.corpus.tar import BLOCK
from flextok.errors import IntegrityError


class Readable(Protocol):
    """Anything to read bytes from, in order."""

    def read(self, size: int, /) -> bytes: ...


def shard_members(stream: Readable, name: str) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of each member of the shard called `name`; raises IntegrityError where it is not as written."""
    while True:
        header = _read(stream, BLOCK)
        if header[:1] == b"\0":
            return
        try:
            size = int(header[124:136].rstrip(b"\0 "), 8)
            member = header[:100].rstrip(b"\0").decode("ascii")
        except ValueError:
            raise IntegrityError(f"expected a tar member in {name}, found other bytes; run `flextok verify`") from None
        content = _read(stream, size + -size % BLOCK)
        if len(content) < size or not member or header[257:262] != b"ustar":
            raise IntegrityError(f"expected {size} bytes for {member!r} in {name}, found fewer; run `flextok verify`")
        yield member, content[:size]


def _read(stream: Readable, size: int) -> bytes:
    """`size` bytes, fewer only at the end: remote files may give back less than asked for."""
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
