"""Deterministic WebDataset tars: the same samples give the same bytes."""

import hashlib
from typing import IO

BLOCK = 512
# The fields of a header that are the same in all: mode and owner; time; type, magic and what is empty.
OWNER = b"0000644\0" + b"0000000\0" * 2
TIME = b"\x0000000000000\0"
REST = b"0" + b"\0" * 100 + b"ustar\x0000" + b"\0" * 247
FIXED_SUM = sum(OWNER + TIME + REST) + 8 * ord(" ")
END_OF_ARCHIVE = b"\0" * (2 * BLOCK)


class TarWriter:
    """Writes regular files into a ustar stream, with fixed owner, mode and time, and hashes what it writes."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._sha = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, content: bytes) -> int:
        """Append a file under an ASCII `name` of at most 100 characters; gives back the offset of its content."""
        offset = self.bytes + BLOCK
        self._write(b"".join((_header(name, len(content)), content, bytes(-len(content) % BLOCK))))
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
    length = b"%011o" % size
    checksum = FIXED_SUM + sum(encoded) + sum(length)
    return b"".join((encoded.ljust(100, b"\0"), OWNER, length, TIME, b"%06o\0 " % checksum, REST))
