"""Who holds a lock: what its file says."""

import itertools
import json
import os
import re
import socket
import sys
import time
import uuid
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from flextok.errors import FlextokError

LOCK_FILE = ".lock"
PLAIN_WORD = re.compile(r"[a-z][a-z_-]*")


class LockedError(FlextokError):
    """Another run holds the lock."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. Times are seconds since the epoch."""

    token: str
    process: int
    host: str
    renewed: float
    since: float = 0.0
    command: str = ""

    @classmethod
    def here(cls) -> "Holder":
        """This process, with a token that no other holder has."""
        now = time.time()
        return cls(uuid.uuid4().hex, os.getpid(), socket.gethostname(), now, now, _command())

    def renewed_now(self) -> "Holder":
        """The same holder, still at work."""
        return replace(self, renewed=time.time())

    def to_json(self) -> bytes:
        """What stands in the lock's file."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Holder | None":
        """The holder that a lock's file names; None when it names none (yet)."""
        try:
            values = json.loads(content)
            return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        except (ValueError, TypeError):
            return None

    def has_ended(self) -> bool:
        """Whether the holder ran on this host and its process is no more."""
        if self.host != socket.gethostname() or self.process == os.getpid():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def __str__(self) -> str:
        since = time.strftime(" since %Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since)) if self.since else ""
        return f"{self.command or 'a run'}{since} (process {self.process} on {self.host})"


def _command() -> str:
    """The program and the words of its command, as `flextok train tokenizer`; never options, paths or URLs."""
    words = itertools.takewhile(PLAIN_WORD.fullmatch, sys.argv[1:])
    return " ".join([Path(sys.argv[0]).name or "python", *words])
