"""A tiny corpus, a tiny tokenizer, an S3 server and one Ray session, shared by the tests of this folder."""

import dataclasses
import os
import shutil
import threading
from collections.abc import Iterator

import pytest
import torch
from tokenize_helpers import IMAGES, SHARDS

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.scenes import ScenesConfig
from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.checkpoint import save_checkpoint
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.nn.config import TrunkConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.compute import ComputeConfig
from flextok.tokenize.config import TokenizeConfig


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a job needs."""

    corpus: str
    tokenizer: str
    config: TokenizeConfig
    compute: ComputeConfig


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Inputs:
    """A corpus of 120 scenes in 6 shards, and a tokenizer whose random weights use many ids.

    It is slow enough (some 100 images/s) that a fault hits a shard in the middle.
    """
    root = tmp_path_factory.mktemp("inputs")
    corpus = CorpusConfig(name="scenes", scenes=ScenesConfig(train_samples=IMAGES), shard_samples=IMAGES // SHARDS)
    summary = shard_corpus(corpus, "train", f"{root}/corpora/scenes/train", workers=1, progress=False)
    assert summary.shards == SHARDS
    encoder = TrunkConfig(width=256, depth=6)
    trunk = TrunkConfig(width=32, depth=1, head_dim=16)
    config = TokenizerConfig(
        latents=ConvAutoencoderConfig(channels=8, blocks=0),
        image_size=32,
        registers=8,
        encoder=encoder,
        decoder=FlowDecoderConfig(trunk=trunk, frequency_size=16),
        quantizer=FSQConfig(levels=(8, 8, 5)),
    )
    tokenizer = Tokenizer.create(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    # Layers that start at zero would give every image the same tokens.
    state = {k: v + 0.2 * torch.randn(v.shape, generator=generator) for k, v in tokenizer.state_dict().items()}
    saved = save_checkpoint(f"{root}/checkpoints/tokenizer", "tokenizer", state, config, [], {})
    return Inputs(
        summary.url, saved.url, TokenizeConfig(batch_size=8), ComputeConfig(num_cpus=2, tokenize_actors=(1, 1))
    )


@pytest.fixture
def corpus_copy(inputs, tmp_path) -> str:
    """The same corpus, to be damaged."""
    return str(shutil.copytree(inputs.corpus, tmp_path / "corpus"))


class FaultyS3:
    """moto's S3 server; while `faulty`, one request in ten fails, in one of three ways."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self._app = DomainDispatcherApplication(create_backend_app)
        self._count = 0
        self.faulty = False
        self.failed = 0
        self.cut = 0
        self.server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __call__(self, environ, start_response):
        self._count += 1
        if not self.faulty or self._count % 10:
            return self._app(environ, start_response)
        self.failed += 1
        if environ["REQUEST_METHOD"] == "GET" and self.cut <= self.failed // 3:
            self.cut += 1
            return self._cut_short(self._app(environ, start_response))
        start_response(["503 Slow Down", "500 Internal Server Error"][self.failed % 2], [("Content-Length", "0")])
        return [b""]

    @staticmethod
    def _cut_short(body):
        content = b"".join(body)
        yield content[: len(content) // 2]
        raise ConnectionResetError("cut by the test")


@pytest.fixture(scope="session")
def s3() -> Iterator[FaultyS3]:
    """An S3 server which every process started from here on finds by the environment."""
    server = FaultyS3()
    settings = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    saved = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield server
    for name, value in saved.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.server.shutdown()


@pytest.fixture(scope="session")
def ray_session(s3) -> Iterator[None]:
    """One local Ray of two CPUs; it starts after the S3 server, whose address its workers inherit."""
    from flextok.runtime.cluster import ensure_ray, stop_ray

    stop_ray()  # another folder's session does not know the S3 server
    ensure_ray("local", num_cpus=2)
    yield
    stop_ray()


@pytest.fixture(scope="session")
def undisturbed(inputs, ray_session, tmp_path_factory) -> tuple[str, str]:
    """Folder and digest of a run that nothing went wrong in."""
    from flextok.tokenize.job import tokenize_corpus

    dest = str(tmp_path_factory.mktemp("undisturbed") / "tokens")
    summary = tokenize_corpus(inputs.corpus, inputs.tokenizer, dest, inputs.config, inputs.compute, progress=False)
    assert (summary.rows, summary.shards, summary.skipped) == (IMAGES, SHARDS, 0)
    return dest, summary.digest
