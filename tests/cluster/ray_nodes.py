"""Real Ray clusters on this machine: `ray start` for each node, with an address of its own."""

import contextlib
import functools
import itertools
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
QUIET = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class RayNodes:
    """A head and further nodes, ended together. `environment` is what all of them start with."""

    def __init__(self, folder: str, **environment: str):
        self._folder = folder
        self.environment = {**os.environ, **QUIET, **environment}
        self._numbers = itertools.count(2)
        self.address = ""

    def start_head(self, cpus: float, *options: str) -> str:
        """Its address, host:port."""
        with socket.socket() as found:
            found.bind(("127.0.0.2", 0))
            port = found.getsockname()[1]
        head = ["--head", f"--port={port}", f"--temp-dir={self._folder}", *(options or ["--include-dashboard=false"])]
        assert self._start(head, cpus) == 2
        self.address = f"127.0.0.2:{port}"
        return self.address

    def add(self, cpus: float, *options: str, hidden: str = "") -> int:
        """Another node; its number, to `kill` it by. It does not see the folder `hidden`, in whose place is an empty one.

        Where this user may, the node has mounts of its own.
        """
        return self._start([f"--address={self.address}", *options], cpus, hidden)

    def hide(self, number: int, folder: str) -> None:
        """From now on the node does not see `folder`, as where a mount is lost."""
        nsenter = ["nsenter", f"--target={self._raylet(number)}", "--mount"]
        subprocess.run([*nsenter, "mount", "-t", "tmpfs", "tmpfs", folder], check=True)

    def writes_into(self, number: int, folder: str) -> bool:
        """Whether a process of the node, which has mounts of its own, has a file of `folder` open."""
        own = os.readlink(f"/proc/{self._raylet(number)}/ns/mnt")
        files = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "ns" / "mnt") == own:
                    files += [os.readlink(file) for file in (process / "fd").iterdir()]
        return any(file.startswith(f"{folder}/") for file in files)

    def _raylet(self, number: int) -> int:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if self._folder in command and f"127.0.0.{number}" in command and "/raylet " in command:
                    return process.pid
        raise AssertionError(f"expected a raylet of node {number}")

    def kill(self, number: int) -> None:
        """SIGKILL to everything of a node."""
        self._kill(f"127.0.0.{number}")

    def end(self) -> None:
        """Nothing is left."""
        self._kill(self._folder)

    def _start(self, options: list[str], cpus: float, hidden: str = "") -> int:
        number = next(self._numbers)
        size = [f"--num-cpus={cpus:g}", f"--object-store-memory={150 * 2**20}"]
        command = [RAY, "start", f"--node-ip-address=127.0.0.{number}", *size, *options]
        if may_hide():
            mounts = f"mount -t tmpfs tmpfs {hidden} && " if hidden else ""
            command = ["unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh", *command]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return number

    def _kill(self, mark: str) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self._folder in " ".join(process.cmdline()) and mark in " ".join(process.cmdline()):
                    process.kill()


@functools.cache
def may_hide() -> bool:
    """Whether this user may start a node that does not see a folder."""
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def ray_nodes(**environment: str) -> Iterator[RayNodes]:
    """Nodes for the block. Their sockets lie in a folder with a short name: such paths have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="fr-", ignore_cleanup_errors=True) as folder:
        nodes = RayNodes(folder, **environment)
        try:
            yield nodes
        finally:
            nodes.end()
