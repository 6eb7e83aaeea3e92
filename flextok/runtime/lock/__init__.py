"""The one lock of everything that is written: a corpus, a token store, a training run, a workspace.

`locked(url)` holds a folder on local disk (by the kernel) or on an object store (by a small file that is renewed).
"""

import contextlib
from collections.abc import Iterator

from flextok import storage
from flextok.runtime.lock.holder import LOCK_FILE, Holder, LockedError
from flextok.runtime.lock.local import locally_locked
from flextok.runtime.lock.remote import remotely_locked

__all__ = ["LOCK_FILE", "LockedError", "holder_token", "is_held", "locked"]


@contextlib.contextmanager
def locked(dest: str) -> Iterator[None]:
    """Hold the folder `dest` for this process while the block runs.

    Raises LockedError at once, naming the holder, when another run holds it; UsageError when nothing can be written
    there. A holder that was killed blocks nobody: on local disk the kernel frees its lock, and on an object store it is
    taken over, at once on the same host and after a minute from another one.
    """
    with locally_locked(dest) if storage.is_local(dest) else remotely_locked(dest):
        yield


def holder_token(dest: str) -> str:
    """What tells the run that holds `dest` from all others; "" where none does, or not yet."""
    holder = _holder(dest)
    return holder.token if holder is not None else ""


def is_held(dest: str) -> bool:
    """Whether a run that may still be at work holds `dest`; one of this host whose process has ended does not."""
    return storage.exists(storage.join(dest, LOCK_FILE)) and not ((holder := _holder(dest)) and holder.has_ended())


def _holder(dest: str) -> Holder | None:
    url = storage.join(dest, LOCK_FILE)
    return Holder.from_json(storage.read_bytes(url)) if storage.exists(url) else None
