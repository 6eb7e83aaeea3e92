"""How fast a checkpoint encodes, decodes and draws on this machine: one image at a time, and as many as are worth it.

The batch is doubled while that gives more images a second, or until memory ends. Inside the clock are uint8 pictures in
memory to ids, ids to uint8 pictures, and ids from a prior with its caches; no file is read or written, nothing compiled.
"""

import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flextok.bench.model import timed
from flextok.data.images import to_model
from flextok.errors import UsageError
from flextok.evaluate.config import EvaluationConfig
from flextok.evaluate.decoding import decode_ids, decoding_dtype, dtype_name
from flextok.evaluate.protocol import decoder_record, environment_record, evaluation_device
from flextok.model.load import load_prior, load_tokenizer
from flextok.model.priors.base import Prior
from flextok.model.sampling.config import DrawConfig
from flextok.model.tokenizer import Tokenizer

WORTH_IT = 1.05
"""Times as many a second that twice the batch must give."""
CLOCK = "uint8 pictures in memory to ids, ids to uint8 pictures, ids from the prior; no files, nothing compiled"
Call = Callable[[], object]


@dataclass(frozen=True)
class CheckpointSpeed:
    """A task at a batch: seconds of a call, the median, and images (of the prior ids) a second."""

    task: str
    batch: int
    seconds: float
    per_second: float
    unit: str
    saturated: bool
    """Whether twice as many gave no more a second, did not fit, or were beyond the largest batch."""


@dataclass(frozen=True)
class CheckpointSpeeds:
    """What was measured, and how."""

    speeds: list[CheckpointSpeed]
    protocol: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return {"speeds": [vars(each) for each in self.speeds], "protocol": self.protocol}


def measure_checkpoints(
    tokenizer_url: str,
    prior_url: str | None = None,
    config: EvaluationConfig | None = None,
    keep: int | None = None,
    largest_batch: int = 256,
    repeats: int = 5,
) -> CheckpointSpeeds:
    """Speeds of the tokenizer, and of the prior where one is given, at batch 1 and saturated.

    `config` has the decoder's steps and guidance, the precision, and the law that the prior draws by. `keep`: tokens that
    are decoded and drawn, all by default; raises UsageError for more than there are.
    """
    config = config or EvaluationConfig()
    device = evaluation_device()
    dtype = decoding_dtype(config, device)
    tokenizer = load_tokenizer(tokenizer_url, device, dtype)
    most = tokenizer.num_tokens
    keep = most if keep is None else keep
    if not 1 <= keep <= most:
        raise UsageError(f"expected --keep within 1..{most}, the tokenizer's tokens, found {keep}")
    protocol: dict[str, Any] = {
        "tokenizer": tokenizer.digest,
        "image_px": tokenizer.config.image_size,
        "keep": keep,
        "decoder": decoder_record(tokenizer, config, dtype_name(dtype)),
        "clock": CLOCK,
        "timing": f"median of {repeats} calls after 1 to warm up",
        "batches": f"doubled up to {largest_batch} while that gives {WORTH_IT - 1:.0%} more a second",
        "threads": torch.get_num_threads(),
        "machine": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "environment": environment_record(device, dtype_name(dtype)),
    }
    tasks = [("encode", _encoding(tokenizer), 1), ("decode", _decoding(tokenizer, keep, config), 1)]
    if prior_url is not None:
        prior = load_prior(prior_url, device)
        if keep > prior.config.num_tokens:
            raise UsageError(f"expected --keep within 1..{prior.config.num_tokens}, the prior's, found {keep}")
        law = config.samples.part(DrawConfig)
        protocol |= {"prior": prior.digest, "condition": prior.config.condition, "sampler": law.content()}
        tasks.append(("prior", _drawing(prior, keep, law, dtype), keep * prior.config.codebooks))
    speeds = [
        CheckpointSpeed(task, batch, seconds, batch * each / seconds, "ids/s" if task == "prior" else "images/s", last)
        for task, call_of, each in tasks
        for batch, seconds, last in _at_one_and_saturated(call_of, largest_batch, repeats)
    ]
    return CheckpointSpeeds(speeds, protocol)


def _at_one_and_saturated(
    call_of: Callable[[int], Call], largest_batch: int, repeats: int
) -> Iterator[tuple[int, float, bool]]:
    """(batch, median seconds, whether it is the saturated one) of one image, then of the batch that is worth it."""
    batch, seconds = 1, statistics.median(timed(call_of(1), repeats))
    yield batch, seconds, False
    while 2 * batch <= largest_batch:
        try:
            twice = statistics.median(timed(call_of(2 * batch), repeats))
        except torch.OutOfMemoryError:
            break
        if 2 * seconds / twice < WORTH_IT:
            break
        batch, seconds = 2 * batch, twice
    yield batch, seconds, True


def _encoding(tokenizer: Tokenizer) -> Callable[[int], Call]:
    side = tokenizer.config.image_size

    def call_of(batch: int) -> Call:
        pictures = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
        return torch.inference_mode()(lambda: tokenizer.tokenize(to_model(pictures).to(tokenizer.device)))

    return call_of


def _decoding(tokenizer: Tokenizer, keep: int, config: EvaluationConfig) -> Callable[[int], Call]:
    def call_of(batch: int) -> Call:
        ids = _encoding(tokenizer)(batch)()
        assert isinstance(ids, torch.Tensor)
        return lambda: decode_ids(tokenizer, ids, keep, [str(index) for index in range(batch)], config)

    return call_of


def _drawing(prior: Prior, keep: int, law: DrawConfig, dtype: torch.dtype) -> Callable[[int], Call]:
    def call_of(batch: int) -> Call:
        guided = law.guidance != 1.0 and prior.config.condition != "none"
        prepared = prior.prepare(2 * batch if guided else batch, dtype)
        labels = [index % max(prior.config.num_classes, 1) for index in range(batch)]
        return lambda: prepared.generate(labels, ["a picture"] * batch, keep, seed=0, num=batch, **dict(law))

    return call_of
