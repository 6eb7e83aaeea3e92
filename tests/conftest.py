"""Fixtures shared by all tests."""

import contextlib
import logging
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

# A shell that starts the tests with `&`, nohup or a supervisor has them ignore signals, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data (real pictures, goldens), named by FLEXTOK_SHARED; required in CI."""
    folder = os.environ.get("FLEXTOK_SHARED")
    if folder and Path(folder).is_dir():
        return Path(folder)
    if os.environ.get("CI"):
        pytest.fail(f"CI needs the shared test data; FLEXTOK_SHARED is {folder!r}")
    pytest.skip("set FLEXTOK_SHARED to the folder with data/ and goldens/ to run this test")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system that holds 40 kB, and a function that gives it another size; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"may not mount a file system here: {mounted.stderr.decode().strip()}")
    try:
        yield folder, lambda size: _mount("-o", f"remount,size={size}", str(folder))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


S3Fault = Callable[[dict[str, Any]], str | None]


@pytest.fixture
def s3_faults() -> list[S3Fault]:
    """What goes wrong in `s3_folder`: each is called with a request's WSGI environment, and gives an HTTP status or None."""
    return []


@pytest.fixture
def s3_folder(monkeypatch: pytest.MonkeyPatch, s3_faults: list[S3Fault]) -> Iterator[str]:
    """An empty folder of an object store: S3 over its real protocol, served here."""
    import s3fs
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        for status in filter(None, (fault(environ) for fault in s3_faults)):
            start_response(status, [])
            return []
        with one_at_a_time:  # a conditional write of S3 is atomic, moto's is a check and a write
            return list(app(environ, start_response))

    server = make_server("127.0.0.1", 0, serve, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    with contextlib.suppress(FileExistsError):  # moto's buckets live as long as the process
        s3fs.S3FileSystem().mkdir("test")
    yield f"s3://test/{uuid.uuid4().hex}"
    server.shutdown()
    thread.join()
    s3fs.S3FileSystem.clear_instance_cache()
