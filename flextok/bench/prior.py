"""Speed of drawing ids from a prior, beside a transformers model of the same size, as a Markdown table.

    python -m flextok.bench.prior [--threads 1]

The other one is `LlamaForCausalLM` with the same width, depth, heads, hidden width and vocabulary, a static cache and the
same law (temperature 1, nothing cut); neither is guided. All draw in turn, in one order and then in the other, and the
medians over all rounds count. Weights are random, on which speed does not depend.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor

from flextok.model.nn.precision import cpu_has_bfloat16
from flextok.model.priors.autoregressive import AutoregressivePrior
from flextok.model.priors.base import Prior
from flextok.model.priors.config import AutoregressiveConfig, PriorConfig
from flextok.model.sampling.trunk import CachedTrunk

VOCABULARY = 64_000
Draw = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """Of a trunk, and how many images are drawn at once."""

    width: int
    depth: int
    head_dim: int
    batches: tuple[int, ...]

    @property
    def model(self) -> AutoregressiveConfig:
        """The settings of a prior of this size."""
        return AutoregressiveConfig(width=self.width, depth=self.depth, head_dim=self.head_dim, condition="none")

    def prior(self, length: int) -> AutoregressivePrior:
        """With random weights that give logits of a spread of about 2."""
        prior = Prior.create(PriorConfig(model=self.model, num_tokens=length, vocab_size=VOCABULARY), seed=0)
        assert isinstance(prior, AutoregressivePrior)
        with torch.no_grad():
            prior.head.weight.normal_(std=2 * self.width**-0.5, generator=torch.Generator().manual_seed(0))
        return prior.eval().requires_grad_(False)

    def llama(self, length: int) -> torch.nn.Module:
        """transformers' model with as many weights."""
        from transformers import LlamaConfig, LlamaForCausalLM  # pyright: ignore[reportMissingImports]

        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.width,
            intermediate_size=int(self.width * self.model.mlp_ratio * 2 / 3),
            num_hidden_layers=self.depth,
            num_attention_heads=self.width // self.head_dim,
            max_position_embeddings=length + 1,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        return LlamaForCausalLM(config).eval()


SIZES = (Size(128, 4, 32, (1, 8, 64)), Size(768, 12, 64, (1, 2, 8)))


def ours(prior: AutoregressivePrior, batch: int, dtype: torch.dtype) -> Draw:
    """Draws ids of `batch` images; the weights are laid out here."""
    trunk = CachedTrunk(prior, batch, dtype)

    def draw() -> Tensor:
        prior.trunk = trunk  # one prior draws in both precisions
        return prior.generate(num=batch, seed=0)

    return draw


def theirs(llama: torch.nn.Module, batch: int, length: int) -> Draw:
    """Draws as many ids by `transformers`."""
    generate: Callable[..., Tensor] = llama.generate  # type: ignore[assignment]
    start = torch.zeros(batch, 1, dtype=torch.long)
    law = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "cache_implementation": "static"}
    return lambda: generate(start, attention_mask=torch.ones_like(start), max_new_tokens=length, **law)


def medians(draws: dict[str, Draw], rounds: int) -> dict[str, float]:
    """Median seconds of each, over `rounds` in one order and as many in the other, after a first one."""
    seconds: dict[str, list[float]] = {name: [] for name in draws}
    for draw in draws.values():
        draw()
    for turn in range(2 * rounds):
        for name in list(draws)[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            draws[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


@torch.no_grad()
def change_of_loss(prior: AutoregressivePrior, batch: int, dtype: torch.dtype) -> float:
    """The share by which products in `dtype` raise the mean loss of ids that the prior drew itself, beside float32."""
    prior.trunk = None
    ids = prior.generate(num=batch, seed=1)
    inputs = torch.cat([prior.start.expand(batch, 1, -1), prior.embedding(ids[:, :-1])], dim=1).split(1, dim=1)
    losses = []
    for precision in (torch.float32, dtype):
        trunk = CachedTrunk(prior, dtype=precision)
        cache = trunk.new_cache(batch, ids.shape[1])
        logits = (trunk.logits(trunk.advance(x, None, cache)) for x in inputs)
        losses.append(
            statistics.fmean(F.cross_entropy(*pair).item() for pair in zip(logits, ids.unbind(1), strict=True))
        )
    return losses[1] / losses[0] - 1


def rows(size: Size, length: int, rounds: int) -> list[str]:
    """Lines of the table: ids a second of all, and how many times as fast ours are."""
    prior, llama, lines = size.prior(length), size.llama(length), []
    for batch in size.batches:
        draws = {"ours": ours(prior, batch, torch.float32), "theirs": theirs(llama, batch, length)}
        if cpu_has_bfloat16():
            draws["ours, bfloat16"] = ours(prior, batch, torch.bfloat16)
        seconds = medians(draws, rounds)
        speeds = [f"{batch * length / taken:,.0f}" for taken in seconds.values()]
        ratios = [f"{seconds['theirs'] / taken:.2f}" for name, taken in seconds.items() if name != "theirs"]
        lines.append(f"| {' | '.join([f'{size.width} x {size.depth}', str(batch), *speeds, *ratios])} |")
    if cpu_has_bfloat16():
        change = change_of_loss(prior, size.batches[-1], torch.bfloat16)
        lines.append(f"| {size.width} x {size.depth} | loss in bfloat16 | {change:+.3%} | | | | |")
    return lines


def report(length: int, rounds: int) -> str:
    """This section of the benchmarks."""
    command = " ".join(["python -m flextok.bench.prior", *sys.argv[1:]])
    heads = ["width x depth", "images", "float32, ids/s", "transformers float32, ids/s"]
    ratios = ["float32, times theirs"]
    if cpu_has_bfloat16():
        heads, ratios = [*heads, "bfloat16, ids/s"], [*ratios, "bfloat16, times their float32"]
    lines = [
        f"## Prior, {torch.get_num_threads()} threads",
        "",
        f"`{command}` on {platform.machine()}, torch {torch.__version__}, transformers {version('transformers')},",
        f"Python {platform.python_version()}. {length} ids of {VOCABULARY:,} an image, temperature 1, not guided, static caches;",
        f"medians of {2 * rounds} drawings each, half of them in the other order.",
        "",
        f"| {' | '.join([*heads, *ratios])} |",
        "|" + " --- |" * (len(heads) + len(ratios)),
        *(line for size in SIZES for line in rows(size, length, rounds)),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=64, help="ids of an image")
    parser.add_argument("--rounds", type=int, default=3, help="timed drawings in each order")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(report(arguments.length, arguments.rounds))


if __name__ == "__main__":
    main()
