"""Real Ray clusters on this machine: `ray start` for each node, with an address of its own."""

import contextlib
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
        self._environment = {**os.environ, **QUIET, **environment}
        self._count = 1
        self.address = ""

    def start_head(self, cpus: float) -> str:
        """Its address, host:port."""
        with socket.socket() as found:
            found.bind(("127.0.0.2", 0))
            port = found.getsockname()[1]
        self._start(["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder}"], cpus)
        self.address = f"127.0.0.2:{port}"
        return self.address

    def add(self, cpus: float, hidden: str = "") -> int:
        """Another node; its number, to `kill` it by. It does not see the folder `hidden`, in whose place is an empty one."""
        self._start([f"--address={self.address}"], cpus, hidden)
        return self._count

    def kill(self, number: int) -> None:
        """SIGKILL to everything of a node."""
        self._kill(f"127.0.0.{number}")

    def end(self) -> None:
        """Nothing is left."""
        self._kill(self._folder)

    def _start(self, options: list[str], cpus: float, hidden: str = "") -> None:
        self._count += 1
        size = [f"--num-cpus={cpus:g}", f"--object-store-memory={150 * 2**20}"]
        command = [RAY, "start", f"--node-ip-address=127.0.0.{self._count}", *size, *options]
        if hidden:
            command = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {hidden} && exec "$@"', "sh", *command]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def _kill(self, mark: str) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self._folder in " ".join(process.cmdline()) and mark in " ".join(process.cmdline()):
                    process.kill()


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
