"""A store that fails, under every stage: one line that says what could not be done, and nothing secret in it."""

import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import s3fs
from tiny_pipeline import EVALUATION, IN_PROCESS, LATENTS, PRIOR, SIZE_PX, TOKENIZER, TinyPipeline

from flextok import storage
from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus
from flextok.data.sources.catalog import source_digest
from flextok.errors import FlextokError
from flextok.evaluate.config import ReportConfig
from flextok.evaluate.export import export_samples
from flextok.evaluate.generation import evaluate_generation
from flextok.evaluate.held_out import held_out_record
from flextok.evaluate.pictures import evaluate_pictures
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.report import write_report
from flextok.evaluate.sampling import sample_images
from flextok.model.decoders.config import SamplerConfig
from flextok.model.official.checkpoint import import_checkpoint
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.files import decode_tokens, encode_images
from flextok.tokenize.job import tokenize_corpus
from flextok.train.autoencoder import train_autoencoder
from flextok.train.prior import train_prior
from flextok.train.tokenizer import train_tokenizer
from pipelines import cli

SECRETS = ("secret-of-the-test", "key-of-the-test")
OUT = "s3://bucket/out"
FAULTS = {
    "wrong key": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    "no bucket": (404, "NoSuchBucket", "The specified bucket does not exist"),
    "overload": (503, "SlowDown", "Please reduce your request rate."),
}
EXIT_CODES = {"wrong key": 2, "no bucket": 2, "overload": 1, "nobody": 1}
SCENES = CorpusConfig.model_validate({"scenes": {"train_samples": 4, "val_samples": 4, "image_px": SIZE_PX}})


class Refusing(BaseHTTPRequestHandler):
    """Answers every request as its server's `fault` says."""

    protocol_version = "HTTP/1.1"  # S3 clients ask before they send a body

    def answer(self) -> None:
        status, code, message = FAULTS[self.server.fault]  # type: ignore[attr-defined]
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Not to stderr, which the tests read."""


@pytest.fixture(params=[*FAULTS, "nobody"])
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """S3 is a server that fails in this way; "nobody": one that is not there."""
    if request.param == "nobody":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port, server = free.getsockname()[1], None
    else:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
        server.fault = request.param  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[0])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRETS[1])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    yield request.param
    s3fs.S3FileSystem.clear_instance_cache()
    if server is not None:
        server.shutdown()
        server.server_close()


Stage = Callable[[TinyPipeline], object]
WRITES: dict[str, Stage] = {
    "shard": lambda p: shard_corpus(SCENES, "train", OUT, progress=False),
    "train vae": lambda p: train_autoencoder(LATENTS, p.train, SIZE_PX, OUT, IN_PROCESS),
    "train tokenizer": lambda p: train_tokenizer(TOKENIZER, p.latents, p.train, SIZE_PX, OUT, IN_PROCESS),
    "tokenize": lambda p: tokenize_corpus(p.val, p.tokenizer, OUT, TokenizeConfig(), IN_PROCESS, progress=False),
    "train prior": lambda p: train_prior(PRIOR, p.train_tokens, None, OUT, IN_PROCESS),
    "samples": lambda p: sample_images(p.prior, p.tokenizer, OUT, EVALUATION),
    "evaluate": lambda p: evaluate_reconstruction(p.tokenizer, p.val, OUT, EVALUATION),
    "fid": lambda p: evaluate_generation(p.samples.url, p.val, p.tokenizer, OUT, EVALUATION),
    "pictures": lambda p: evaluate_pictures(*[f"{p.samples.url}/images/k001"] * 2, OUT, EVALUATION),
    "export": lambda p: export_samples(p.samples.url, f"{OUT}.npz"),
    "report": lambda p: write_report(p.report_inputs(), OUT, ReportConfig()),
    "encode": lambda p: encode_images(
        [f"{p.samples.url}/images/k{p.samples.keep[0]:03d}/000000.png"], p.tokenizer, f"{OUT}.parquet", TokenizeConfig()
    ),
    "decode": lambda p: decode_tokens(
        f"{p.val_tokens}/000000.parquet", p.tokenizer, OUT, sampler=SamplerConfig(steps=1)
    ),
}
READS: dict[str, Stage] = {
    "source": lambda p: source_digest(CorpusConfig(source="s3://bucket/pictures"), "all"),
    "shard": lambda p: shard_corpus(CorpusConfig(source="s3://bucket/pictures"), "all", f"{p.root}/x", progress=False),
    "import": lambda p: import_checkpoint("s3://bucket/official", f"{p.root}/x"),
}


def check_line(line: str) -> None:
    assert "\n" not in line and "Traceback" not in line
    assert "s3://bucket" in line and re.search(r"could not|expected", line), line
    assert not any(secret in line for secret in SECRETS), line


@pytest.mark.parametrize("stage", WRITES)
def test_a_destination_that_fails_is_one_line(stage: str, fault: str, pipeline: TinyPipeline) -> None:
    with pytest.raises(FlextokError) as failure:
        WRITES[stage](pipeline)
    check_line(str(failure.value))
    assert failure.value.exit_code == EXIT_CODES[fault]


@pytest.mark.parametrize("stage", READS)
def test_an_input_that_fails_is_one_line(stage: str, fault: str, pipeline: TinyPipeline) -> None:
    with pytest.raises(FlextokError) as failure:
        READS[stage](pipeline)
    check_line(str(failure.value))


def test_training_images_out_of_reach_are_not_compared(fault: str, pipeline: TinyPipeline, tmp_path: Path) -> None:
    """Whoever evaluates another's tokenizer need not reach what it was trained on."""
    url = str(tmp_path / "tokenizer")
    shutil.copytree(pipeline.tokenizer, url)
    provenance = storage.read_json(f"{url}/provenance.json")
    corpora = [{**item, "uri": "s3://bucket/train"} for item in provenance["inputs"] if item["kind"] == "corpus"]
    storage.write_json(f"{url}/provenance.json", {**provenance, "inputs": corpora})
    corpus = Corpus.open(pipeline.val)
    record = held_out_record(url, corpus, corpus.index("key")["key"].to_list(), allowed=False)
    assert (record["in_training"], record["not_compared"]) == (0, [corpora[0]["digest"]])


COMMANDS = {
    "shard": "shard {local} s3://bucket/out",
    "shard from": "shard s3://bucket/pictures {local}/out",
    "train vae": "train vae --workspace s3://bucket/ws",
    "train tokenizer": "train tokenizer --workspace s3://bucket/ws",
    "train prior": "train prior --workspace s3://bucket/ws",
    "tokenize": "tokenize s3://bucket/shards {local}/tokens --tokenizer {tokenizer}",
    "tokenize by": "tokenize {corpus} {local}/tokens --tokenizer s3://bucket/tokenizer",
    "generate": "generate --prior s3://bucket/prior --tokenizer {tokenizer} --out {local}/out",
    "evaluate": "evaluate --tokenizer {tokenizer} --shards s3://bucket/shards --out {local}/out",
    "evaluate pictures": "evaluate --images s3://bucket/a --reference s3://bucket/b.npz --out {local}/out",
    "export": "export-samples s3://bucket/samples {local}/a.npz",
    "report": "report s3://bucket/r s3://bucket/g --val-tokens s3://bucket/t --out {local}/out",
    "encode": "encode s3://bucket/a.jpg --tokenizer {tokenizer} --out {local}/a.parquet",
    "decode": "decode s3://bucket/a.parquet --tokenizer {tokenizer} --out {local}/out",
    "inspect": "inspect s3://bucket/x",
    "verify": "verify s3://bucket/x",
    "import-checkpoint": "import-checkpoint s3://bucket/x {local}/out",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_with_one_line(
    command: str, fault: str, pipeline: TinyPipeline, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = COMMANDS[command].format(local=tmp_path, corpus=pipeline.val, tokenizer=pipeline.tokenizer)
    assert cli.run(arguments.split()) in (1, 2)
    errors = capsys.readouterr().err
    assert "Traceback" not in errors and not any(secret in errors for secret in SECRETS)
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: ")
    check_line(last)
