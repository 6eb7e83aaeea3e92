"""How notices reach a person: the library logs under its modules' names, and a command shows that on stderr.

Elsewhere (a notebook, a Dagster run, a Ray worker) the records go where that place sends them.
"""

import logging
import sys

from rich.color import ColorSystem
from rich.style import Style

LOGGERS = ("flextok", "pipelines")
STYLES = {logging.WARNING: Style(color="yellow"), logging.ERROR: Style(color="red")}


def setup() -> None:
    """Show what this package logs as lines on stderr: notices as they are, warnings with `warning: ` before them."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _Lines) for handler in logger.handlers):
            logger.addHandler(_Lines())


class _Lines(logging.Handler):
    """A line for each record, on whatever stderr is by then: a bar that is shown there takes it above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            text = f"{level}{record.getMessage()}"
            if sys.stderr.isatty():
                text = STYLES.get(record.levelno, Style()).render(text, color_system=ColorSystem.STANDARD)
            print(text, file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001 - a notice that cannot be written must not end the work
            self.handleError(record)
