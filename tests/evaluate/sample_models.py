"""A prior and a tokenizer of random weights, and jobs of samples of theirs; run as a script, one in a process of its own.

Arguments: prior, tokenizer, destination.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flextok.evaluate.config import SamplesConfig, SamplingConfig
from flextok.evaluate.sampling import SamplesResult
from flextok.generate import generate_samples
from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.checkpoint import save_checkpoint
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.nn.config import TrunkConfig
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.compute import ComputeConfig

SAMPLES, SHARD = 70, 16
SHARDS = 5
TRUNK = TrunkConfig(width=32, depth=1, head_dim=16)


@dataclass(frozen=True)
class Models:
    """Checkpoints."""

    prior: str
    tokenizer: str


def make_models(root: Path) -> Models:
    """The models, whose ids and pictures differ from sample to sample."""
    config = TokenizerConfig(
        latents=ConvAutoencoderConfig(channels=8, blocks=0),
        image_size=32,
        registers=8,
        encoder=TRUNK,
        decoder=FlowDecoderConfig(trunk=TRUNK, frequency_size=16),
        quantizer=FSQConfig(levels=(8, 8, 5)),
    )
    tokenizer = save_checkpoint(
        f"{root}/tokenizer", "tokenizer", _shaken(Tokenizer.create(config, seed=0)), config, [], {}
    )
    of_prior = PriorConfig(
        width=128, depth=6, num_classes=10, num_tokens=8, vocab_size=320, tokenizer=tokenizer.digest
    )  # fmt: skip
    prior = save_checkpoint(f"{root}/prior", "prior", _shaken(Prior.create(of_prior, seed=0)), of_prior, [], {})
    return Models(prior.url, tokenizer.url)


def _shaken(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Layers that start at zero would give every sample the same tokens."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: each + 0.1 * torch.randn(each.shape, generator=generator) for name, each in module.state_dict().items()
    }


def settings(batch_size: int = 4, num: int = SAMPLES, **changes: Any) -> SamplingConfig:
    """Those of a job."""
    samples = SamplesConfig(num=num, guidance=1.5, **{"shard_samples": SHARD, "pictures": 0, **changes})
    return SamplingConfig(steps=1, guidance=1.0, batch_size=batch_size, keep=(2, 8), samples=samples)


def run(
    models: Models, dest: Path, actors: int = 0, config: SamplingConfig | None = None, **given: Any
) -> SamplesResult:
    """Samples by so many actors; 0: in this process."""
    compute = ComputeConfig(num_cpus=3, tokenize_actors=(actors, actors)) if actors else None
    return generate_samples(models.prior, models.tokenizer, str(dest), config or settings(), compute=compute, **given)


if __name__ == "__main__":
    run(Models(*sys.argv[1:3]), Path(sys.argv[3]))
