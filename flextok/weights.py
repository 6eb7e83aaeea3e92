"""Files of weights that others made: looked at only where they are those that were named."""

from collections.abc import Sequence
from pathlib import Path

from flextok import storage
from flextok.errors import UsageError


def from_hub(hub_id: str, files: Sequence[str], whose: str, remedy: str) -> Path:
    """The folder with `files` of a model of the Hub on this machine, fetched where missing; UsageError, which ends in `remedy`."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # the Hub's own errors are of these kinds
        first_line = str(error).strip().splitlines()[0]
        raise UsageError(f"expected {whose} {hub_id} on the Hub, found: {first_line}; {remedy}") from None


def check_weights(url: str, sha256: str, whose: str, remedy: str) -> None:
    """Raises UsageError, which ends in `remedy`, unless there is a file with this hash at `url`."""
    if not storage.exists(url):
        raise UsageError(f"expected the weights of {whose} at {url}, found nothing there; {remedy}")
    if (found := storage.sha256_file(url)) != sha256:
        raise UsageError(f"expected weights of {whose} with sha256 {sha256}, found {found} at {url}; {remedy}")
