"""A shrunk smoke profile, built once through Dagster and Ray for all tests that look at its results."""

from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest
from moto.server import ThreadedMotoServer
from shrunk_smoke import Built, shrunk_profile

from pipelines import cli


@pytest.fixture(scope="package")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The shrunk smoke profile after its first `flextok run`."""
    folder = tmp_path_factory.mktemp("smoke")
    done = Built(shrunk_profile(folder / "smoke.yaml"), folder / "work*space #1 [é] 'x'")
    assert cli.run(["run", *done.arguments()]) == 0
    return done


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
