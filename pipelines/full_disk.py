"""A full disk under Dagster's SQLite files, told like every other full disk."""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

# SQLite says only "disk I/O error" where its shared memory, 32 KiB at first, finds no room.
LITTLE_ROOM_BYTES = 1 << 20


@contextlib.contextmanager
def full_disk_as_os_error(home: Path) -> Iterator[None]:
    """Turns SQLite's errors about a full disk under `home`, however wrapped, into an OSError with ENOSPC."""
    try:
        yield
    except Exception as error:
        if _is_full(error, home):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(home)) from error
        raise


def _is_full(error: BaseException | None, home: Path) -> bool:
    seen: set[int] = set()  # Dagster's errors may have themselves among their causes
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        name = getattr(error, "sqlite_errorname", "") if isinstance(error, sqlite3.Error) else ""
        if name == "SQLITE_FULL":
            return True
        if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")):
            return _has_little_room(home)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def _has_little_room(home: Path) -> bool:
    disk = os.statvfs(home)
    return disk.f_bavail * disk.f_frsize < LITTLE_ROOM_BYTES or (disk.f_files > 0 and disk.f_favail == 0)
