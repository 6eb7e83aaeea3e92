"""The actor of an encoding of captions: holds the text encoder, turns one shard after another into a file of features."""

import functools
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from flextok.data.corpus.reader import Sample, iter_shard
from flextok.data.rejects import Reject
from flextok.data.text_features.shard import write_feature_shard
from flextok.data.tokens.writer import ShardRecord
from flextok.errors import IntegrityError
from flextok.model.text import TextEncoder, text_encoder
from flextok.tokenize.fitness import Proof
from flextok.tokenize.tasks import Finished
from flextok.tokenize.text.tasks import TextTask, finished_text, text_task_from_json
from flextok.tokenize.worker import ShardWorker

IMAGES_AT_ONCE = 32
"""Their captions are encoded together. Cut within a shard, so that features do not depend on who makes it."""


class CaptionEncoder(ShardWorker[TextTask, TextEncoder]):
    """Turns shards of images into files of the features of their captions, see `ShardWorker`.

    One thread on a CPU: sums of several round otherwise, and several actors do as well.
    """

    parse = staticmethod(text_task_from_json)

    def __init__(
        self,
        encoder: str,
        digest: str,
        device: str,
        monitor: Any = None,
        members: bytes = b"",
        proof: Proof | None = None,
    ):
        self._model_turn = threading.Lock()
        super().__init__(functools.partial(_ready_encoder, encoder, digest, device), monitor, members, proof)

    def _finished(self, task: TextTask) -> Finished | None:
        return finished_text(task)

    def _attempt(self, task: TextTask) -> tuple[ShardRecord, list[Reject], str]:
        return write_feature_shard(task.dest, task.meta, self._encoded(task)), [], ""

    def _encoded(self, task: TextTask) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Keys of the images of a shard, and the features of their captions."""
        images, told = 0, time.monotonic()
        for samples in _grouped(iter_shard(task.corpus, task.source)):
            captions = [captions_of(sample) for sample in samples]
            with self._model_turn:
                found = self.model.encode([caption for some in captions for caption in some])
            features = (values[mask] for values, mask in zip(found.values.cpu(), found.mask.cpu(), strict=True))
            for sample, some in zip(samples, captions, strict=True):
                yield sample.key, [next(features).numpy() for _ in some]
            images += len(samples)
            told = self._tell(task, images, told)


def captions_of(sample: Sample) -> list[str]:
    """All captions of an image, in their order; an empty one where it has none."""
    found = sample.meta.get("captions") or ([sample.text] if sample.text else [])
    return list(found) or [""]


def _grouped(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    for sample in samples:
        group.append(sample)
        if len(group) == IMAGES_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _ready_encoder(name: str, digest: str, device: str) -> TextEncoder:
    """The encoder, which must be that of the driver. Raises FlextokError where it cannot be had."""
    torch.set_num_threads(1)
    encoder = text_encoder(name, torch.device(device))
    if encoder.digest != digest:
        raise IntegrityError(f"expected the text encoder {name}, {digest[:12]}, found {encoder.digest[:12]}")
    return encoder
