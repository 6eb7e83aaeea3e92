"""A lock on a folder of an object store, where no kernel keeps one: a small file which its holder renews."""

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Iterator
from typing import cast

from flextok import storage
from flextok.runtime.lock.holder import LOCK_FILE, Holder, LockedError

RENEW_EVERY_S = 10.0
STALE_AFTER_S = 60.0
NOBODY = Holder("", 0, "", 0.0)  # whom a file names that is no lock of ours

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def remotely_locked(dest: str) -> Iterator[None]:
    """Hold `dest` while the block runs.

    A lock belongs to a run that is gone when it was not renewed for 60 s, or its process on this host has ended. On S3
    the store itself decides between two runs that start at once. On a store without conditional writes, two which start
    within one round trip of each other may both pass; what they write is whole all the same, since files appear in one
    put.
    """
    url = storage.join(dest, LOCK_FILE)
    mine = Holder.here()
    _take(url, mine, dest)
    ended = threading.Event()

    def keep_renewing() -> None:
        while not ended.wait(RENEW_EVERY_S):
            with contextlib.suppress(Exception):  # a store that failed once: the next renewal makes up for it
                found = _read(url)
                if found is not None and found[0].token != mine.token:
                    logger.warning("lost the lock of %s, not renewed for %.0f s, to %s", dest, STALE_AFTER_S, found[0])
                    return
                storage.write_bytes(url, mine.renewed_now().to_json())

    thread = threading.Thread(target=keep_renewing, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # where the store is gone, that is the error to tell, and the lock ages
            found = _read(url)
            if found is not None and found[0].token == mine.token:
                storage.remove(url)


def _take(url: str, mine: Holder, dest: str) -> None:
    """Write `mine` as the holder; raises LockedError when another run holds the lock or was faster to take it."""
    before = _read(url)
    if before is not None:
        holder, _ = before
        idle_s = time.time() - holder.renewed
        if idle_s < STALE_AFTER_S and not holder.has_ended():
            raise LockedError(
                f"another run is writing {dest}: {holder}; wait until it ends, choose another destination, "
                f"or try again in {STALE_AFTER_S - idle_s:.0f} s if it was killed"
            )
    refused: OSError | None = None
    try:
        _put(url, mine.to_json(), before[1] if before is not None else None)
    except OSError as error:
        refused = error
    after = _read(url)
    if after is not None and after[0].token == mine.token:
        return
    if after is not None and (before is None or after[0].token != before[0].token):
        raise LockedError(
            f"another run is writing {dest}, begun at the same moment: {after[0]}; try again when it has ended"
        )
    raise refused or LockedError(f"expected to hold the lock of {dest}, found it gone; try again")


def _read(url: str) -> tuple[Holder, str] | None:
    """The holder named by the file, and the file's ETag where there is one ("" elsewhere); None without a lock."""
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()
    try:
        etag = str(fs.info(path).get("ETag", ""))
        # In one request: another run may replace the file at any moment.
        return Holder.from_json(cast(bytes, fs.cat_file(path))) or NOBODY, etag
    except FileNotFoundError:
        return None


def _put(url: str, content: bytes, etag: str | None) -> None:
    """Write the lock's file where none is, or in place of the one with `etag`.

    Raises OSError when another run was faster and the store can tell (If-None-Match, If-Match).
    """
    fs, path = storage.filesystem(url)
    if etag == "":  # a store that names no versions
        storage.write_bytes(url, content)
        return
    try:
        fs.pipe_file(path, content, **({"mode": "create"} if etag is None else {"IfMatch": etag}))
    except (NotImplementedError, TypeError, ValueError):
        storage.write_bytes(url, content)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # a store that knows no conditions
            raise
        storage.write_bytes(url, content)
