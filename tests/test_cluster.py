"""Reaching Ray: what cannot be reached is told at once and in one line."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from flextok.errors import FlextokError
from flextok.runtime.cluster import RAY_FOLDER, ensure_ray, stop_ray
from flextok.runtime.process_group import start_reaper


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


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="without descriptors of processes there is no reaper")
def test_what_ray_began_to_start_later_ends_with_it_too() -> None:
    """A worker that is still importing when its node is killed would be there until it had imported all."""
    mark = f"--raylet-name=/tmp/{uuid.uuid4().hex}/raylet"
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    with start_reaper([], mark) as reaper:
        young = subprocess.Popen([*sleeping, "--node=1", mark])
        other = subprocess.Popen([*sleeping, f"{mark[:-1]}x"])
        try:
            reaper.communicate()
            assert young.wait(10) == -signal.SIGKILL
            assert other.poll() is None
        finally:
            for process in (young, other):
                process.kill()
                process.wait()


def test_the_mark_is_among_the_arguments_of_rays_workers() -> None:
    stop_ray()
    ensure_ray("local", num_cpus=1)
    try:
        reaper = next(process for process in psutil.Process().children() if "pidfd_open" in " ".join(process.cmdline()))
        mark = next(argument for argument in reaper.cmdline() if argument.startswith("--raylet-name="))
        raylet = next(p for p in psutil.Process().children() if any(mark in argument for argument in p.cmdline()[1:]) and p.pid != reaper.pid)  # fmt: skip
        assert any("default_worker.py" in argument and mark in argument for argument in raylet.cmdline())
    finally:
        stop_ray()
