"""Lineage never ends or delays a run: what goes wrong with it is one warning."""

import contextlib
import logging
from collections.abc import Iterator

from flextok.storage import redact

logger = logging.getLogger(__name__)

_told: set[str] = set()


@contextlib.contextmanager
def quietly(doing: str) -> Iterator[None]:
    """An error in the block becomes a warning that `doing` did not go well, once in the life of a process."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever a store, Dagster or the client raises: the work goes on
        warn_once(f"could not {doing}: {' '.join(str(error).split()) or type(error).__name__}", doing)


def warn_once(message: str, subject: str) -> None:
    """Log a warning without secrets, unless there was one about `subject` before."""
    if subject not in _told:
        _told.add(subject)
        logger.warning("%s", redact(message))
