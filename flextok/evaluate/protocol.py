"""The protocol record: what must be equal for two numbers to be comparable. It is stored beside every number.

The parts follow the questions that break comparisons in practice: which images, against which reference, cropped how,
decoded how, looked at by which network, computed with what.
"""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import torch

from flextok.data.corpus.reader import Corpus
from flextok.digests import digest_of
from flextok.model.decoders.config import SamplerConfig
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.compute import ComputeConfig
from flextok.version import __version__

UINT8_RULE = "clamp(round((x + 1) * 127.5), 0, 255) of model output in [-1, 1]"
IN_MEMORY = "none: uint8 in memory"
SAME_IMAGES = "same images, after the same crop"


def images_record(name: str, digest: str, keys: Sequence[str], available: int) -> dict[str, Any]:
    """Which images of a data set entered: its name and digest, their number, and a hash of their keys."""
    selection = "all" if len(keys) == available else "those with the smallest sha256 of their key"
    return {
        "name": name,
        "digest": digest,
        "images": len(keys),
        "rows": digest_of(sorted(keys)),
        "selection": selection,
    }


def corpus_record(corpus: Corpus, keys: Sequence[str], available: int) -> dict[str, Any]:
    """Which images of a corpus split entered, of `available` ones."""
    return images_record(f"{corpus.name}/{corpus.split}", corpus.digest, keys, available)


def decoder_record(tokenizer: Tokenizer, config: SamplerConfig, dtype: str) -> dict[str, Any]:
    """How `tokenizer`, computing in `dtype`, made pixels of tokens."""
    return {**tokenizer.decoder.record(config), "dtype": dtype, "uint8": UINT8_RULE}


def environment_record(device: str, dtype: str = "float32") -> dict[str, str]:
    """What computed the number: device, precision of the network, library versions."""
    return {
        "device": device,
        "dtype": dtype,
        "flextok": __version__,
        "torch": torch.__version__,
        "torch_fidelity": importlib.metadata.version("torch-fidelity"),
    }


def evaluation_device(compute: ComputeConfig | None = None) -> str:
    """The device evaluations run on: the first GPU where there is one; on a cluster a GPU where workers ask for one."""
    if compute is None or not compute.on_cluster:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if compute.gpus_per_worker else "cpu"
