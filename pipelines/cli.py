"""The `flextok` command: exit code 0 done, 1 the work failed, 2 wrong usage; the last line of stderr says why.

Nothing large is imported before the signals are owned: all commands take a second to import, in which a signal would end
the process without a word or with a traceback.
"""

import os
import sys
from collections.abc import Sequence

# Set before Dagster is imported anywhere.
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")

from flextok.runtime import interrupts


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process with its exit code."""
    with interrupts.owned(last_words=_last_words):
        code = run(sys.argv[1:] if arguments is None else list(arguments))
        with interrupts.closing():
            sys.stdout.flush()
            if code:
                _end_at_once(code)
    sys.exit(code)


def _last_words() -> None:
    print(f"error: {interrupts.interrupted_line()}", file=sys.stderr)
    if "ray" in sys.modules:
        from flextok.runtime.cluster import kill_ray

        kill_ray()


def _end_at_once(code: int) -> None:
    """End the process without waiting for threads.

    An interrupt that comes while a pool starts a thread leaves one which Python does not know to end, and would wait for.
    """
    if "ray" in sys.modules:
        from flextok.runtime.cluster import stop_ray

        stop_ray()
    sys.stderr.flush()
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and give back its exit code."""
    try:
        # Held, as Python drops some of what a handler raises while a module is imported.
        with interrupts.held():
            from pipelines import app
    except KeyboardInterrupt:
        _last_words()
        return 1
    return app.run(arguments)


if __name__ == "__main__":
    main()
