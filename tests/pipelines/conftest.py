"""A shrunk smoke profile, built once through Dagster and Ray for all tests that look at its results."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from moto.server import ThreadedMotoServer
from shrunk_smoke import Built, shrunk_profile

from pipelines import cli


@pytest.fixture(scope="session")
def built(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Built:
    """The shrunk smoke profile after its first `flextok run`; to be read only, or `copied`."""

    def built_in(folder: Path) -> Built:
        return Built(folder / "smoke.yaml", folder / "work*space #1 [é] 'x'")

    def build(folder: Path) -> None:
        shrunk_profile(folder / "smoke.yaml")
        assert cli.run(["run", *built_in(folder).arguments()]) == 0

    return built_in(made_once("smoke", build))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty prefix in an object store: moto's, over the real protocol on loopback."""
    import s3fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()  # moto's buckets live as long as the process
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("workspaces")
    yield "s3://workspaces/prefix"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()
