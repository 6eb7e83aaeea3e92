"""Ends the work in hand when the head of its cluster is gone, with a line and while there is time to keep what is done.

Without this Ray ends the process from within, a minute after the head's last answer, and nothing is said.
"""

import logging
import os
import socket
import threading
import time

from flextok.runtime import interrupts

LOOK_EVERY_S = 1.0
TELL_AFTER_S = 5.0
ANSWER_WITHIN_S = 2.0
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's own setting: seconds after which a process without a head is ended, 60 if it is not set."""
BEFORE_THAT_S = 15.0
"""Then we end it instead: some heads come back until then (KubeRay with Redis), and an end takes interrupts.GRACE_S."""
logger = logging.getLogger(__name__)


class HeadWatch:
    """A thread that asks whether anything listens at a head's host:port, and interrupts the process where nothing does."""

    def __init__(self, address: str):
        host, _, port = address.rpartition(":")
        self._address, self._place = address, (host.strip("[]"), int(port))
        self._patience_s = max(float(os.environ.get(RECONNECT, "60")) - BEFORE_THAT_S, 2 * LOOK_EVERY_S)
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="head", daemon=True).start()

    def end(self) -> None:
        """Look no longer."""
        self._ended.set()

    def _run(self) -> None:
        answered, told = time.monotonic(), False
        while not self._ended.wait(LOOK_EVERY_S):
            gone_s = time.monotonic() - answered
            if self._answers():
                answered, told = time.monotonic(), False
            elif gone_s >= self._patience_s:
                interrupts.stop(
                    f"expected Ray's head at {self._address}, found no answer for {gone_s:.0f} s: start it again"
                )
                return
            elif gone_s >= TELL_AFTER_S and not told:
                told = True
                logger.warning(
                    "Ray's head at %s does not answer: %.0f s more before this command ends",
                    self._address, self._patience_s - gone_s,
                )  # fmt: skip

    def _answers(self) -> bool:
        try:
            socket.create_connection(self._place, timeout=ANSWER_WITHIN_S).close()
        except OSError:
            return False
        return True
