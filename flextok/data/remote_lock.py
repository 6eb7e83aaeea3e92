"""A lock on a folder of an object store, where no kernel keeps one: a small file which its holder renews."""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from flextok import storage
from flextok.errors import FlextokError

LOCK_FILE = ".lock"
RENEW_EVERY_S = 10.0
STALE_AFTER_S = 60.0


@contextlib.contextmanager
def remotely_locked(dest: str) -> Iterator[None]:
    """Hold `dest` while the block runs; raises FlextokError when another run holds it.

    A lock that was not renewed for 60 s belongs to a run that is gone. Two runs which start within one round trip of
    each other may both pass; what they write is whole and equal all the same, since shards appear in one put.
    """
    url = storage.join(dest, LOCK_FILE)
    token = uuid.uuid4().hex
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    if storage.exists(url):
        holder = storage.read_json(url)
        idle_s = time.time() - holder["renewed"]
        if idle_s < STALE_AFTER_S:
            raise FlextokError(
                f"another run is writing {dest} ({holder['owner']}); wait until it ends, choose another destination, "
                f"or try again in {STALE_AFTER_S - idle_s:.0f} s if it was killed"
            )

    def renew() -> None:
        storage.write_json(url, {"token": token, "owner": owner, "renewed": time.time()})

    renew()
    if storage.read_json(url)["token"] != token:
        raise FlextokError(f"another run began to write {dest} at the same moment; try again when it has ended")
    ended = threading.Event()

    def keep_renewing() -> None:
        while not ended.wait(RENEW_EVERY_S):
            with contextlib.suppress(Exception):  # the next one makes up for it
                renew()

    thread = threading.Thread(target=keep_renewing, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        storage.remove(url)
