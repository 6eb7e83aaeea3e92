"""Reaching Ray: what cannot be reached is told at once and in one line."""

import socket
import time

import pytest

from flextok.errors import FlextokError
from flextok.runtime.cluster import ensure_ray, stop_ray


@pytest.mark.parametrize("address", ["127.0.0.1:{closed}", "127.0.0.1:port"])
def test_a_cluster_that_is_not_there_is_refused_at_once(address: str) -> None:
    stop_ray()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nothing else can answer there
        closed = unused.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(FlextokError, match=r"expected a Ray cluster at 127\.0\.0\.1"):
            ensure_ray(address.format(closed=closed))
        assert time.monotonic() - started < 30
