"""Corpora from and to S3 over its real protocol: moto's server on loopback, also failing and dying."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from flextok import storage
from flextok.data.config import CorpusConfig
from flextok.data.corpus.crops import read_at
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus, iter_shard
from flextok.data.corpus.verify import verify_corpus
from flextok.data.sources.catalog import source_digest
from flextok.errors import FlextokError
from flextok.runtime.lock.remote import STALE_AFTER_S

SECRET = "secret-of-the-test"


class Store:
    """moto behind a door that can fail: `fail_every` n-th request gives 503, `dead` refuses all."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self.requests = self.refused = 0
        self.fail_every: int | None = None
        self.dies_at_put_of: str | None = None
        self.dead = False
        self.holds_put_of: str | None = None
        self.holding, self.let_go = threading.Event(), threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests += 1
            turn = self.fail_every is not None and self.requests % self.fail_every == 0
        if environ["REQUEST_METHOD"] == "PUT" and self.dies_at_put_of and self.dies_at_put_of in environ["PATH_INFO"]:
            environ["wsgi.input"].read(64)  # in the middle of the upload
            self.dead = True
        if environ["REQUEST_METHOD"] == "PUT" and self.holds_put_of and self.holds_put_of in environ["PATH_INFO"]:
            self.holding.set()
            self.let_go.wait()
            raise ConnectionAbortedError("the client is gone")
        if self.dead:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError("the store is gone")
        if turn:
            self.refused += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return self._app(environ, start_response)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    app = Store()
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()  # moto's buckets live as long as the process
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield app
    s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
    thread.join()


@pytest.fixture
def source(make_folder: Callable[..., Path]) -> Path:
    folder = make_folder([f"{'ab'[i % 2]}/{i} é.jpg" for i in range(24)])
    (folder / "a/bad.jpg").write_text("no")
    return folder


def config(source: str, **options: Any) -> CorpusConfig:
    return CorpusConfig.model_validate({"source": source, "shard_samples": 8, **options})


def upload(folder: Path, url: str) -> str:
    for path in sorted(folder.rglob("*.*")):
        if path.is_file():
            storage.write_bytes(storage.join(url, str(path.relative_to(folder))), path.read_bytes())
    return url


def test_s3_and_disk_give_the_same_corpus(store: Store, source: Path, tmp_path: Path) -> None:
    url = upload(source, "s3://bucket/pictures")
    wanted = shard_corpus(config(str(source)), "all", str(tmp_path / "disk"), progress=False)
    from_s3 = shard_corpus(config(url), "all", str(tmp_path / "from"), progress=False)
    to_s3 = shard_corpus(config(url), "all", "s3://bucket/corpora/x/all", workers=2, progress=False)
    assert wanted.digest == from_s3.digest == to_s3.digest
    assert (to_s3.samples, to_s3.reason_counts, to_s3.classes) == (24, {"not_an_image": 1}, ["a", "b"])

    corpus = Corpus.open("s3://bucket/corpora/x/all/shards")
    row = corpus.index().row(3, named=True)
    sample = next(s for s in iter_shard(corpus.url, row["shard"]) if s.key == row["key"])
    entry = next(entry for entry in corpus.shards if entry.name == row["shard"])
    assert read_at(entry.url, row["offset"], row["size"]) == sample.image
    assert verify_corpus(corpus.url) == []
    storage.write_bytes("s3://bucket/corpora/x/all/shards/000009.tar", b"x")
    assert verify_corpus(corpus.url) == ["shards/000009.tar: extra file, not in the manifest"]

    before = source_digest(config(url), "all")
    storage.write_bytes(storage.join(url, "a/0 é.jpg"), (source / "a/2 é.jpg").read_bytes())
    assert source_digest(config(url), "all") != before  # the ETag tells


def test_tars_on_s3(
    store: Store, make_tar: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    for i in range(2):
        make_tar(tmp_path / f"tars/{i}.tar", [(f"{i}{k}.jpg", make_picture(10 * i + k)) for k in range(5)])
    url = upload(tmp_path / "tars", "s3://bucket/tars")
    ours = shard_corpus(config(url), "all", str(tmp_path / "a"), progress=False)
    assert ours.samples == 10
    assert (
        ours.digest == shard_corpus(config(str(tmp_path / "tars")), "all", str(tmp_path / "b"), progress=False).digest
    )


def test_a_store_that_fails_one_request_in_ten_changes_nothing(store: Store, source: Path, tmp_path: Path) -> None:
    url = upload(source, "s3://bucket/pictures")
    wanted = shard_corpus(config(str(source)), "all", str(tmp_path / "disk"), progress=False).digest
    store.fail_every = 10
    found = shard_corpus(config(url), "all", "s3://bucket/out", progress=False)
    assert found.digest == wanted and found.rejects == 1
    assert store.refused >= 5
    store.fail_every = None
    assert verify_corpus("s3://bucket/out") == []


def test_a_store_that_dies_in_an_upload_leaves_nothing_half_done(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)  # it stays dead: no use waiting long
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    wanted = shard_corpus(config(str(source)), "all", str(tmp_path / "disk"), progress=False).digest
    store.dies_at_put_of = "shards/000001.tar"
    with pytest.raises(FlextokError) as caught:
        shard_corpus(config(str(source)), "all", "s3://bucket/out", progress=False)
    assert "run the same command again" in str(caught.value) and SECRET not in str(caught.value)
    store.dead, store.dies_at_put_of = False, None
    assert storage.list_names("s3://bucket/out/shards") == ["000000.tar"]
    assert not storage.exists("s3://bucket/out/manifest.json")
    # The dead run could not take back its lock either; it is this very process, so it is still held for a minute.
    storage.remove("s3://bucket/out/.lock")
    first = storage.filesystem("s3://bucket/out/shards/000000.tar")
    written = first[0].info(first[1])["LastModified"]
    assert shard_corpus(config(str(source)), "all", "s3://bucket/out", progress=False).digest == wanted
    first[0].invalidate_cache()
    assert first[0].info(first[1])["LastModified"] == written
    assert verify_corpus("s3://bucket/out") == []


def test_two_runs_to_one_place_on_s3(store: Store, source: Path) -> None:
    from flextok.runtime.lock import locked

    with locked("s3://bucket/out"), pytest.raises(FlextokError, match="another run is writing"):
        shard_corpus(config(str(source)), "all", "s3://bucket/out", progress=False)
    assert shard_corpus(config(str(source)), "all", "s3://bucket/out", progress=False).samples == 24


def test_the_lock_of_a_killed_run_is_taken_over_at_once(store: Store, source: Path, tmp_path: Path) -> None:
    wanted = shard_corpus(config(str(source)), "all", str(tmp_path / "disk"), progress=False).digest
    store.holds_put_of = "shards/000001.tar"
    run = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("shard_process.py")), str(source), "s3://bucket/out", "1"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert store.holding.wait(120)
    finally:
        run.kill()
        run.wait()
        store.holds_put_of = None
        store.let_go.set()
    assert storage.read_json("s3://bucket/out/.lock")["process"] == run.pid
    assert storage.list_names("s3://bucket/out/shards") == ["000000.tar"]
    assert shard_corpus(config(str(source)), "all", "s3://bucket/out", progress=False).digest == wanted
    assert verify_corpus("s3://bucket/out") == [] and not storage.exists("s3://bucket/out/.lock")


def test_the_lock_of_another_host_is_kept_while_it_is_renewed(store: Store, source: Path) -> None:
    holder = {"token": "of another", "process": 1, "host": "elsewhere.example", "renewed": time.time()}
    storage.write_json("s3://bucket/out/.lock", holder)
    with pytest.raises(FlextokError, match=r"process 1 on elsewhere\.example\); .* try again in (59|60) s"):
        shard_corpus(config(str(source)), "all", "s3://bucket/out", progress=False)
    assert storage.read_json("s3://bucket/out/.lock") == holder
    storage.write_json("s3://bucket/out/.lock", {**holder, "renewed": time.time() - STALE_AFTER_S - 1})
    assert shard_corpus(config(str(source)), "all", "s3://bucket/out", progress=False).samples == 24
    assert not storage.exists("s3://bucket/out/.lock")


def test_credentials_reach_no_file(store: Store, source: Path) -> None:
    shard_corpus(config(upload(source, "s3://bucket/pictures")), "all", "s3://bucket/out", progress=False)
    fs, path = storage.filesystem("s3://bucket/out")
    for name in fs.find(path):
        content = fs.cat_file(name)
        assert SECRET.encode() not in content and b"key-of-the-test" not in content, name
