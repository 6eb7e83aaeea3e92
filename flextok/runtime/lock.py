"""A lock on a destination, so that two runs do not write the same corpus."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from flextok import storage
from flextok.errors import FlextokError, UsageError
from flextok.runtime.remote_lock import LOCK_FILE, remotely_locked

__all__ = ["LOCK_FILE", "locked"]


@contextlib.contextmanager
def locked(dest: str) -> Iterator[None]:
    """Hold `dest` for this process while the block runs; raises FlextokError when another run holds it.

    On local disk the kernel frees the lock when its holder dies, however it dies.
    """
    if not storage.is_local(dest):
        with remotely_locked(dest):
            yield
        return
    path = storage.local_path(storage.join(dest, LOCK_FILE))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except PermissionError as error:
        raise UsageError(f"expected a destination that can be written, found {dest}: {error.strerror}") from None
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EROFS):
            raise UsageError(f"expected a folder that can be written in {dest}, found: {error.strerror}") from None
        raise
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise FlextokError(
                f"another run is writing {path.parent}; wait until it ends, or choose another destination"
            ) from None
        # The holder before us unlinks the file when it ends: a lock on an unlinked file protects nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)
