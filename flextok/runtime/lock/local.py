"""A lock on a folder of a local disk: the kernel frees it when its holder dies, however it dies."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from flextok import storage
from flextok.errors import UsageError
from flextok.runtime.lock.holder import LOCK_FILE, Holder, LockedError

CANNOT_WRITE = (errno.EEXIST, errno.ENOTDIR, errno.EROFS, errno.ENOSYS)


@contextlib.contextmanager
def locally_locked(dest: str) -> Iterator[None]:
    """Hold `dest` while the block runs. A folder that was made for the lock and is still empty goes with it."""
    folder = storage.local_path(dest)
    path = folder / LOCK_FILE
    is_new = not folder.exists()
    try:
        lock = _acquired(path)
        inode = path.stat().st_ino
    except PermissionError as error:
        raise UsageError(f"expected a destination that can be written, found {dest}: {error.strerror}") from None
    except OSError as error:
        if error.errno in CANNOT_WRITE:
            raise UsageError(f"expected a folder that can be written in {dest}, found: {error.strerror}") from None
        raise
    try:
        path.write_bytes(Holder.here().to_json())
        yield
    finally:
        # While the lock is held: filelock passes over a file that was unlinked before it got the kernel's lock on it.
        _remove(path, inode)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        lock.release()


def _acquired(path: Path) -> FileLock:
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
            return lock
        except FileNotFoundError:  # the holder before us removed the folder between the two lines
            continue
        except Timeout:
            raise LockedError(
                f"another run is writing {path.parent}: {_holder(path)}; "
                "wait until it ends, or choose another destination"
            ) from None


def _remove(path: Path, inode: int) -> None:
    """Remove the lock's file, unless the folder was removed and another run holds a new one."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()


def _holder(path: Path) -> Holder | str:
    try:
        return Holder.from_json(path.read_bytes()) or "it has only begun"
    except FileNotFoundError:
        return "it is just ending"
