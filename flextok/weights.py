"""Files of weights that others made: looked at only where they are those that were named."""

from flextok import storage
from flextok.errors import UsageError


def check_weights(url: str, sha256: str, whose: str, remedy: str) -> None:
    """Raises UsageError, which ends in `remedy`, unless there is a file with this hash at `url`."""
    if not storage.exists(url):
        raise UsageError(f"expected the weights of {whose} at {url}, found nothing there; {remedy}")
    if (found := storage.sha256_file(url)) != sha256:
        raise UsageError(f"expected weights of {whose} with sha256 {sha256}, found {found} at {url}; {remedy}")
