"""Holds a lock until its stdin ends: a holder for tests, to be asked to leave or killed."""

import sys

from flextok.runtime.lock import locked

with locked(sys.argv[-1]):
    print("held", flush=True)
    sys.stdin.read()
