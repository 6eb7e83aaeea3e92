"""Real Ray clusters on this machine: `ray start` for each node, with an address of its own."""

import contextlib
import functools
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
QUIET = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_prestart_worker_first_driver": "0"}
# A head asks for the token that another Ray may have left in the home folder, nodes that join do not give it by themselves.
WITHOUT_TOKEN = {"RAY_AUTH_MODE": "disabled"}
# Each of the processes that share the tests has nodes of its own.
NET = "127.0." + os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")


def host(number: int) -> str:
    """The address of a node."""
    return f"{NET}.{number}"


class RayNodes:
    """A head and further nodes, ended together. `environment` is what all of them start with."""

    def __init__(self, folder: str, **environment: str):
        self._folder = folder
        self.environment = {**WITHOUT_TOKEN, **os.environ, **QUIET, **environment}
        self._numbers = itertools.count(2)
        self.address = ""

    def start_head(self, cpus: float, *options: str) -> str:
        """Its address, host:port."""
        return self._start_head(free_port(host(2)), cpus, *(options or ["--include-dashboard=false"]))

    def start_autoscaling_head(self, *workers: dict[str, float]) -> str:
        """One without CPUs whose autoscaler starts, on demand, one node with each of these resources."""
        port = free_port(host(2))
        no_commands = {f"{kind}_{what}_commands": [] for kind in ("head", "worker") for what in ("setup", "start_ray")}
        config = {
            "cluster_name": "on-demand", "max_workers": len(workers), "upscaling_speed": 1.0, "idle_timeout_minutes": 5,
            "provider": {
                "type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
                "disable_launch_config_check": True, "gcs_address": f"{host(2)}:{port}",
            },
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                **{
                    f"worker-{number}": {"resources": has, "node_config": {}, "min_workers": 0, "max_workers": 1}
                    for number, has in enumerate(workers)
                },
            },
            "head_node_type": "ray.head.default", "auth": {}, "docker": {}, "file_mounts": {}, "rsync_exclude": [],
            "cluster_synced_files": [], "initialization_commands": [], "setup_commands": [], **no_commands,
        }  # fmt: skip
        file = Path(self._folder) / "autoscaling.json"
        file.write_text(json.dumps(config))
        self.environment |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        return self._start_head(port, 0, "--include-dashboard=false", f"--autoscaling-config={file}")

    def _start_head(self, port: int, cpus: float, *options: str) -> str:
        assert self._start(["--head", f"--port={port}", f"--temp-dir={self._folder}", *options], cpus) == 2
        self.address = f"{host(2)}:{port}"
        return self.address

    def add(self, cpus: float, *options: str, hidden: str = "") -> int:
        """Another node; its number, to `kill` it by. It does not see the folder `hidden`, in whose place is an empty one.

        Where this user may, the node has mounts of its own.
        """
        return self._start([f"--address={self.address}", *options], cpus, hidden)

    def hide(self, number: int, folder: str) -> None:
        """From now on the node does not see `folder`, as where a mount is lost."""
        self._mount(number, 'mount -t tmpfs tmpfs "$0"', folder)

    def protect(self, number: int, folder: str) -> None:
        """From now on the node may not write into `folder`."""
        self._mount(number, 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"', folder)

    def fill(self, number: int, folder: str) -> None:
        """From now on there is no room for what the node writes into `folder`."""
        layer = tempfile.mkdtemp(dir=self._folder)
        self._mount(
            number,
            'mount -t tmpfs -o size=16k tmpfs "$1" && mkdir "$1/upper" "$1/work" && head -c 16k /dev/zero > "$1/full" && '
            'mount -t overlay -o "lowerdir=$0,upperdir=$1/upper,workdir=$1/work" overlay "$0"',
            folder, layer,
        )  # fmt: skip

    def _mount(self, number: int, how: str, *folders: str) -> None:
        nsenter = ["nsenter", f"--target={self._raylet(number)}", "--mount"]
        subprocess.run([*nsenter, "sh", "-c", how, *folders], check=True)

    def signal_workers(self, number: int, what: signal.Signals) -> None:
        """Send it to what the node's workers run in."""
        for process in psutil.Process(self._raylet(number)).children():
            if " ".join(process.cmdline()).startswith("ray::"):
                process.send_signal(what)

    def where(self, worker: str) -> list[int]:
        """Numbers of the nodes that have a worker of this class; with a method behind it, one that is in it."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(f"ray::{worker}"):
                    raylet = " ".join(process.parent().cmdline())
                    if self._folder in raylet and (address := re.search(rf"{re.escape(NET)}\.(\d+)", raylet)):
                        found.append(int(address[1]))
        return found

    def _raylet(self, number: int) -> int:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if self._folder in command and host(number) in command and "/raylet " in command:
                    return process.pid
        raise AssertionError(f"expected a raylet of node {number}")

    def kill(self, number: int) -> None:
        """SIGKILL to everything of a node."""
        self._kill(host(number))

    def kill_head(self) -> None:
        """SIGKILL to what only the head has; the other nodes are left without one."""
        for mark in ("/gcs_server ", f"--node_ip_address={host(2)} "):
            self._kill(mark)

    def end(self) -> None:
        """Nothing is left."""
        self._kill(self._folder)

    def _start(self, options: list[str], cpus: float, hidden: str = "") -> int:
        number = next(self._numbers)
        size = [f"--num-cpus={cpus:g}", f"--object-store-memory={150 * 2**20}"]
        size += [
            "--dashboard-agent-listen-port=0"
        ]  # for that of all nodes, only one of this machine gets, others wait 4 s
        command = [RAY, "start", f"--node-ip-address={host(number)}", *size, *options]
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


def free_port(host: str) -> int:
    """One that nobody listens at, now."""
    with socket.socket() as found:
        found.bind((host, 0))
        return found.getsockname()[1]


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
