"""Deterministic WebDataset tars: the same samples give the same bytes."""

import hashlib
from typing import IO

BLOCK = 512
END_OF_ARCHIVE = b"\0" * (2 * BLOCK)


class TarWriter:
    """Writes regular files into a ustar stream, with fixed owner, mode and time, and hashes what it writes."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._sha = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, content: bytes) -> int:
        """Append a file under an ASCII `name` of at most 100 characters; gives back the offset of its content."""
        self._write(_header(name, len(content)))
        offset = self.bytes
        self._write(content)
        self._write(b"\0" * (-len(content) % BLOCK))
        return offset

    def close(self) -> str:
        """End the archive; gives back the hex sha256 of all its bytes."""
        self._write(END_OF_ARCHIVE)
        return self._sha.hexdigest()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._sha.update(content)
        self.bytes += len(content)


def _header(name: str, size: int) -> bytes:
    """A POSIX ustar header (IEEE Std 1003.1, pax, "ustar Interchange Format")."""
    encoded = name.encode("ascii")
    if len(encoded) > 100:
        raise ValueError(f"expected a member name of at most 100 characters, found {name!r}")
    fields = (
        encoded.ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % size, b"00000000000\0",
        b" " * 8, b"0", b"\0" * 100, b"ustar\x0000", b"\0" * 247,
    )  # fmt: skip
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
