"""A lock on a folder of an object store, where no kernel keeps one: a small file which its holder renews."""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from flextok import storage
from flextok.errors import FlextokError

LOCK_FILE = ".lock"
RENEW_EVERY_S = 10.0
STALE_AFTER_S = 60.0


@contextlib.contextmanager
def remotely_locked(dest: str) -> Iterator[None]:
    """Hold `dest` while the block runs; raises FlextokError when another run holds it.

    A lock belongs to a run that is gone when it was not renewed for 60 s, or its process on this host has ended. Two
    runs which start within one round trip of each other may both pass; what they write is whole and equal all the
    same, since shards appear in one put.
    """
    url = storage.join(dest, LOCK_FILE)
    token = uuid.uuid4().hex
    if storage.exists(url):
        holder = storage.read_json(url)
        idle_s = time.time() - holder["renewed"]
        if idle_s < STALE_AFTER_S and not _ended_here(holder):
            raise FlextokError(
                f"another run is writing {dest} (process {holder['process']} on {holder['host']}); wait until it ends, "
                f"choose another destination, or try again in {STALE_AFTER_S - idle_s:.0f} s if it was killed"
            )

    def renew() -> None:
        holder = {"token": token, "process": os.getpid(), "host": socket.gethostname(), "renewed": time.time()}
        storage.write_json(url, holder)

    renew()
    if storage.read_json(url)["token"] != token:
        raise FlextokError(f"another run began to write {dest} at the same moment; try again when it has ended")
    ended = threading.Event()

    def keep_renewing() -> None:
        while not ended.wait(RENEW_EVERY_S):
            with contextlib.suppress(Exception):  # a store that failed once: the next renewal makes up for it
                renew()

    thread = threading.Thread(target=keep_renewing, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # where the store is gone, that is the error to tell, and the lock ages
            storage.remove(url)


def _ended_here(holder: dict[str, Any]) -> bool:
    """Whether the holder ran on this host and its process is no more."""
    if holder["host"] != socket.gethostname() or holder["process"] == os.getpid():
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
