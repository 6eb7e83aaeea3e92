"""What a person is told when Dagster's records fail: a full disk under SQLite's files, a Postgres that does not answer."""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from flextok.errors import TransientError

# SQLite says only "disk I/O error" where its shared memory, 32 KiB at first, finds no room.
LITTLE_ROOM_BYTES = 1 << 20


@contextlib.contextmanager
def telling_record_faults(home: Path) -> Iterator[None]:
    """Turns, however wrapped, SQLite's errors about a full disk under `home` into an OSError with ENOSPC, and those of a
    Postgres that does not answer into a TransientError."""
    try:
        yield
    except Exception as error:
        for cause in _causes(error):
            if _is_full(cause, home):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(home)) from error
            if _is_away(cause):
                raise TransientError(
                    f"expected an answer of the Postgres with Dagster's records, found: {' '.join(str(cause).split())}; "
                    "start it, then run the same command again (what was finished is kept)"
                ) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from."""
    seen: set[int] = set()  # Dagster's errors may have themselves among their causes
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_full(error: BaseException, home: Path) -> bool:
    name = getattr(error, "sqlite_errorname", "") if isinstance(error, sqlite3.Error) else ""
    if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")):
        return _has_little_room(home)
    return name == "SQLITE_FULL"


def _is_away(error: BaseException) -> bool:
    """By name: the driver is installed only where there is a Postgres."""
    kind = type(error)
    return kind.__module__.partition(".")[0] == "psycopg2" and any(
        base.__name__ == "OperationalError" for base in kind.__mro__
    )


def _has_little_room(home: Path) -> bool:
    disk = os.statvfs(home)
    return disk.f_bavail * disk.f_frsize < LITTLE_ROOM_BYTES or (disk.f_files > 0 and disk.f_favail == 0)
