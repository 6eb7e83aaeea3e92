"""The process that serves: models, engine, socket, and an orderly end."""

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import uvicorn

from flextok.errors import FlextokError, UsageError
from flextok.model.load import load_prior, load_tokenizer
from flextok.model.priors.base import Prior
from flextok.model.tokenizer import Tokenizer
from flextok.runtime import interrupts
from flextok.serve.app import make_app
from flextok.serve.engine import Engine
from flextok.serve.metrics import Metrics

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
BACKLOG = 2048
# Together within interrupts.GRACE_S.
DRAWING_ENDS_S = 3.0
ANSWERS_END_S = 2
LOOK_S = 0.5
STARTED_LOOK_S = 0.02


@dataclass(frozen=True)
class Running:
    """A server at work: where, the thread that answers, who draws, and what it counts."""

    url: str
    thread: threading.Thread
    engine: Engine
    metrics: Metrics


def serve(prior_url: str, tokenizer_url: str, host: str, port: int, batch: int, queue: int) -> None:
    """Serve until interrupted; see `make_app` for what. On a GPU, where there is one.

    Raises UsageError for checkpoints that do not go together, and where the port is taken.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prior, tokenizer = load_prior(prior_url, device), load_tokenizer(tokenizer_url, device)
    if prior.config.tokenizer not in ("", tokenizer.digest):
        raise UsageError(
            f"expected the tokenizer {prior.config.tokenizer[:12]} that prior {prior_url} was trained for, "
            f"found {tokenizer.digest[:12]}; give that tokenizer"
        )
    if prior.config.condition == "text":
        prior.text_encoder  # noqa: B018 - loaded now, so that one which is not there ends the command
    with serving(prior.prepare(batch), tokenizer, host, port, batch, queue) as server:
        logger.info("serving on %s, up to %d images at once (Ctrl-C ends it)", server.url, batch)
        try:
            while server.thread.is_alive():
                server.thread.join(LOOK_S)
        except KeyboardInterrupt:
            return
    raise FlextokError("expected the server to run, found that it ended; see its lines above")


@contextlib.contextmanager
def serving(prior: Prior, tokenizer: Tokenizer, host: str, port: int, batch: int, queue: int) -> Iterator[Running]:
    """A server at work in threads of this process while the block runs."""
    with _bound(host, port) as bound:
        metrics = Metrics()
        engine = Engine(prior, tokenizer, batch, queue, metrics.batches.observe)
        app = make_app(engine, metrics, [*LOOPBACK] if host in LOOPBACK else ["*"])
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=ANSWERS_END_S,
        )
        server = uvicorn.Server(config)
        # In a thread of its own it leaves the signals to `interrupts`.
        thread = threading.Thread(target=server.run, args=([bound],), name="answering", daemon=True)
        thread.start()
        name = f"[{host}]" if ":" in host else host
        try:
            while thread.is_alive() and not server.started:
                thread.join(STARTED_LOOK_S)
            yield Running(f"http://{name}:{bound.getsockname()[1]}", thread, engine, metrics)
        finally:
            with interrupts.closing():
                engine.stop(DRAWING_ENDS_S)
                server.should_exit = True
                thread.join(ANSWERS_END_S + 2)


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; give another --host or --port") from None
    with bound:
        yield bound
