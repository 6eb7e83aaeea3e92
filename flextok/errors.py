"""Errors meant for the person who runs the command: one line, what was expected, found, and to do."""


class FlextokError(Exception):
    """The work failed or a check did not hold. The command ends with exit code 1."""

    exit_code = 1


class UsageError(FlextokError):
    """Wrong usage, configuration or input path. The command ends with exit code 2."""

    exit_code = 2


class IntegrityError(FlextokError):
    """Stored bytes do not match what their manifest says."""


class TransientError(FlextokError):
    """The work failed for something that may have passed by the next attempt: a store, a network, a lost worker."""
