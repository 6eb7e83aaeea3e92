"""Members of any tar, read from headers alone, with bounded memory and every fault named.

Unlike Python's tarfile it never reads a member into memory, trusts no length in a header, goes on behind an
early end-of-archive mark (tars joined by cat), and tells a cut file from a complete one.
"""

from collections.abc import Iterator
from typing import IO, NamedTuple

from flextok.data.corpus.tar import BLOCK

LONGEST_EXTENSION = 1 << 20
"""Bytes allowed for a long name or pax record; real ones have a few hundred."""


class TarMember(NamedTuple):
    """One entry; `kind` is "file", "folder", "hardlink" (to `link`) or "special" (links, devices, sparse files)."""

    name: str
    kind: str
    offset: int
    size: int
    whole: bool
    """False when the file ends within it."""
    link: str = ""


class TarError(Exception):
    """The archive cannot be followed further; `offset` is where."""

    def __init__(self, detail: str, offset: int):
        super().__init__(detail)
        self.detail, self.offset = detail, offset


KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"5": "folder", b"1": "hardlink"}


def tar_members(file: IO[bytes], length: int) -> Iterator[TarMember]:
    """The members of a tar of `length` bytes, in order.

    Raises TarError where the bytes stop being a tar, also when it ends without its end mark and without a cut member.
    """
    offset, ended = 0, False
    pending: dict[str, str] = {}
    while offset < length:
        file.seek(offset)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise TarError("ends within a header", offset)
        if not any(header):
            ended, offset = True, offset + BLOCK
            continue
        size = _number(header[124:136]) if _checksum_holds(header) else None
        if size is None or size < 0:
            if ended:
                return  # padding or garbage behind a proper end
            raise TarError("no tar header", offset)
        ended = False
        kind = header[156:157]
        body, offset = offset + BLOCK, offset + BLOCK + size + (-size % BLOCK)
        if kind in b"xgLK":
            extension = _extension(file, kind, size, body, length)
            if kind != b"g":
                pending |= extension
            continue
        size = int(pending["size"]) if pending.get("size", "").isdecimal() else size
        offset = body + size + (-size % BLOCK)
        name = pending.get("path") or _name(header)
        link = pending.get("linkpath") or header[157:257].split(b"\0")[0].decode("utf-8", "backslashreplace")
        pending = {}
        if kind in (b"1", b"2", b"5"):
            size, offset = 0, body
        yield TarMember(name, KINDS.get(kind, "special"), body, size, body + size <= length, link)
        if body + size > length:
            return
    if not ended:
        raise TarError("no end mark: samples behind it may be lost", offset)


def _extension(file: IO[bytes], kind: bytes, size: int, body: int, length: int) -> dict[str, str]:
    """Fields for the next member from a pax header or a GNU long name."""
    if size > LONGEST_EXTENSION or body + size > length:
        raise TarError(f"an extended header of {size} bytes", body)
    content = file.read(size)
    if kind in b"LK":
        text = content.split(b"\0")[0].decode("utf-8", "backslashreplace")
        return {"path" if kind == b"L" else "linkpath": text}
    fields: dict[str, str] = {}
    while content:
        digits, _, rest = content.partition(b" ")
        count = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = rest[: count - len(digits) - 1]
        if count <= len(digits) + 1 or not record.endswith(b"\n"):
            raise TarError("a damaged pax header", body)
        key, _, value = record[:-1].partition(b"=")
        fields[key.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        content = content[count:]
    return fields


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "backslashreplace")


def _checksum_holds(header: bytes) -> bool:
    stored = _number(header[148:156])
    return stored == sum(header[:148]) + 8 * ord(" ") + sum(header[156:])


def _number(field: bytes) -> int | None:
    """An octal field, or GNU's base-256 form for large numbers; None when it is neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    digits = field.split(b"\0")[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None
