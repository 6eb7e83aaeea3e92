"""What a person is told when a disk or a store fails: for every stage the same one line, without any secret.

@storage_errors("tokenize {corpus_url} into {dest}", keeps="finished shards are kept")
def tokenize_corpus(corpus_url, ..., dest): ...
"""

import contextlib
import errno
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from flextok.errors import FlextokError, TransientError, UsageError
from flextok.storage import redact

P = ParamSpec("P")
T = TypeVar("T")

STORE_LIBRARIES = {"botocore", "aiobotocore", "aiohttp"}
"""Their errors are no OSErrors."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def storage_errors(doing: str, keeps: str = "") -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator: `telling_storage_errors` around each call. `doing` may name arguments and their attributes in braces."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def told(*args: P.args, **kwargs: P.kwargs) -> T:
            with telling_storage_errors(doing.format_map(signature.bind(*args, **kwargs).arguments), keeps):
                return function(*args, **kwargs)

        return told

    return decorate


@contextlib.contextmanager
def telling_storage_errors(doing: str, keeps: str = "") -> Iterator[None]:
    """What a disk or a store raises in the block becomes the FlextokError of `as_storage_error`; other errors pass."""
    try:
        yield
    except Exception as error:
        found = as_storage_error(error, doing, keeps)
        if found is None:
            raise
        raise found from None  # the error itself may show a secret, and logs show what an error came from


def as_storage_error(error: Exception, doing: str, keeps: str = "") -> FlextokError | None:
    """The one line for `error` if it came from a disk or a store, None if it did not.

    `doing` says what could not be done, `keeps` what a run that ended so leaves behind. UsageError where something may not
    be read or written, or is not there; FlextokError where there is no room; TransientError where it failed otherwise.
    """
    from_store = type(error).__module__.partition(".")[0] in STORE_LIBRARIES
    if not isinstance(error, OSError) and not from_store:
        return None
    detail = storage_detail(error)
    again = "run the same command again" + (f" ({keeps})" if keeps else "")
    failed = f"could not {redact(doing)}: {detail}"
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, PermissionError) or number in REFUSED:
        return UsageError(
            f"{failed}; expected a place that can be read or written: check its rights and your credentials"
        )
    if isinstance(error, FileNotFoundError):
        return UsageError(f"{failed}; check the path, then {again}")
    if number in FULL:
        return FlextokError(f"{failed}; free some room, then {again}")
    if from_store:
        return TransientError(f"{failed}; check the network and your credentials, then {again}")
    return TransientError(f"{failed}; check the disk or the store, then {again}")


def storage_detail(error: BaseException) -> str:
    """What `error` says of itself and of the place it was met at, in one line without any secret."""
    place = [note for note in getattr(error, "__notes__", []) if note not in str(error)]
    return redact(": ".join([*place, " ".join(str(error).split()) or type(error).__name__]))
