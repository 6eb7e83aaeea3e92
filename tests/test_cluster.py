"""Reaching Ray: what cannot be reached is told at once and in one line."""

import os
import socket
import time

import psutil
import pytest

from flextok.errors import FlextokError
from flextok.runtime.cluster import RAY_FOLDER, ensure_ray, stop_ray


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


def test_a_signal_to_the_group_of_a_command_does_not_reach_its_ray() -> None:
    stop_ray()
    ensure_ray("local", num_cpus=1)
    try:
        groups = [
            os.getpgid(process.pid) for process in psutil.Process().children() if RAY_FOLDER in process.cmdline()[0]
        ]
        assert len(groups) >= 2  # its store and its raylet
        assert os.getpgrp() not in groups
    finally:
        stop_ray()
