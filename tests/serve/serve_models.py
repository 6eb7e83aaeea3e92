"""Tiny models, and a server of them in threads of this process, for tests."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch

from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.nn.config import TrunkConfig
from flextok.model.priors.autoregressive import AutoregressivePrior
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.model.tokenizer import Tokenizer
from flextok.serve import server
from flextok.serve.engine import Engine
from flextok.serve.metrics import Metrics

L, VOCABULARY = 8, 16
TRUNK = TrunkConfig(width=16, depth=1, head_dim=8)


def make_tokenizer() -> Tokenizer:
    config = TokenizerConfig(
        latents=ConvAutoencoderConfig(channels=8, blocks=0, latent_channels=2, factor=4),
        image_size=16,
        registers=L,
        encoder=TRUNK,
        quantizer=FSQConfig(levels=(4, 4)),
        decoder=FlowDecoderConfig(trunk=TRUNK),
    )
    return _with_weights(Tokenizer.create(config, 0)).prepare(torch.float32)


def make_prior(condition: str) -> AutoregressivePrior:
    config = PriorConfig.model_validate(
        {
            "model": {"width": 16, "depth": 1, "head_dim": 8, "condition": condition},
            "num_tokens": L, "vocab_size": VOCABULARY, "num_classes": 3 if condition == "class" else 0,
        }
    )  # fmt: skip
    prior = _with_weights(Prior.create(config, 0))
    assert isinstance(prior, AutoregressivePrior)
    return prior


def _with_weights(model: Any) -> Any:
    """Weights large enough that every input matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


class Held:
    """Drawing that waits at its first position until it is released, and a count of positions."""

    def __init__(self) -> None:
        self._at_first, self._goes_on = threading.Event(), threading.Event()
        self.positions = 0
        self.reached, self.release = self._at_first.is_set, self._goes_on.set

    def wait(self, *_arguments: object) -> None:
        self.positions += 1
        self._at_first.set()
        self._goes_on.wait(30)


@dataclass(frozen=True)
class Serving:
    url: str
    prior: AutoregressivePrior
    tokenizer: Tokenizer
    engine: Engine
    metrics: Metrics

    @property
    def address(self) -> tuple[str, int]:
        place = urlsplit(self.url)
        assert place.hostname and place.port
        return place.hostname, place.port

    def sample(self, name: str, **labels: str) -> float:
        """A number of `/metrics`; 0 where it was never counted."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @contextlib.contextmanager
    def drawing_held(self) -> Iterator[Held]:
        """Drawing waits in the middle of its first batch until it is released."""
        held = Held()
        hook = self.prior.norm.register_forward_hook(held.wait)  # the last one before the vocabulary
        try:
            yield held
        finally:
            held.release()
            hook.remove()

    async def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def serving(prior: AutoregressivePrior, tokenizer: Tokenizer, batch: int, queue: int) -> Iterator[Serving]:
    with server.serving(prior, tokenizer, "127.0.0.1", 0, batch, queue) as running:
        yield Serving(running.url, prior, tokenizer, running.engine, running.metrics)
