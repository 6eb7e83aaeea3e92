"""Speed and precision of the tokenizer on this machine, as a Markdown table.

    python -m flextok.bench.model [--tokenizer CHECKPOINT]

Measures encoding (latents in) and decoding at d12 size with random weights, in float32 and bfloat16, beside the machine's
matrix-product peak in the same run, and how often bfloat16 gives the ids of float32. With --tokenizer, that agreement is
measured on a trained model too, on latents of its own making.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flextok.model.autoencoders.config import AutoencoderKLConfig
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.load import load_tokenizer
from flextok.model.nn.config import TrunkConfig
from flextok.model.tokenizer import Tokenizer

D12 = TrunkConfig(width=768, depth=12)
PEAK_SIZE = 4096
POSITIONS_A_ROW = 16
TRAINED_IMAGES = 256
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Speed:
    """One line of the table."""

    task: str
    dtype: torch.dtype
    images_per_s: float
    gflop_per_image: float
    peak_gflops: float

    def row(self) -> str:
        """As a Markdown table row."""
        share = self.images_per_s * self.gflop_per_image / self.peak_gflops
        cells = [
            self.task,
            NAMES[self.dtype],
            f"{self.images_per_s:.2f}",
            f"{self.gflop_per_image:.1f}",
            f"{share:.0%}",
        ]
        return f"| {' | '.join(cells)} |"


def d12_tokenizer(device: torch.device) -> Tokenizer:
    """d12-d12 with random weights, none of them zero where that would make all ids alike."""
    config = TokenizerConfig(
        latents=AutoencoderKLConfig(), image_size=256, encoder=D12, decoder=FlowDecoderConfig(trunk=D12)
    )
    tokenizer = Tokenizer.create(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.trainable_parameters():
            if not parameter.any():
                parameter.normal_(std=0.02 if parameter.dim() > 1 else 0.1, generator=generator)
        tokenizer.encoder.head.weight.mul_(4.0)  # codes spread over several levels
    return tokenizer.to(device).eval()


def forward_gflop(trunk: TrunkConfig, patches: int, registers: int, full: bool) -> float:
    """Billions of floating-point operations of a trunk's matrix products for one image.

    `full`: every position attends to every one (decoder); otherwise patches only to patches (encoder).
    """
    length = patches + registers
    linear = 2 * length * (4 * trunk.width**2 + 3 * trunk.width * trunk.hidden)
    pairs = length**2 if full else patches**2 + registers * length
    return trunk.depth * (linear + 4 * trunk.width * pairs) / 1e9


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Best GFLOP/s of a large square matrix product."""
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=device).to(dtype) for _ in range(2))
    return 2 * PEAK_SIZE**3 / best_seconds(lambda: a @ b, repeats=4) / 1e9


def best_seconds(run: Callable[[], object], repeats: int) -> float:
    """Shortest time of `repeats` runs after a first one."""
    return min(timed(run, repeats))


def timed(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` runs after a first one."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times[1:]


def measure(tokenizer: Tokenizer, dtype: torch.dtype, batch: int, steps: int, repeats: int) -> list[Speed]:
    """Encoding, and decoding with guidance, of latents at the model's own size; `tokenizer` is of size d12."""
    peak = matmul_peak(dtype, tokenizer.device)
    z = torch.randn(batch, *tokenizer.latent_shape)
    ids = tokenizer.encode_latents(z)
    rows, columns = tokenizer.config.grid
    sizes = (rows * columns, tokenizer.num_tokens)
    encode = forward_gflop(D12, *sizes, full=False)
    # a step is one call for the conditional and the unconditional half
    decode = 2 * steps * forward_gflop(D12, *sizes, full=True)
    encode_s = best_seconds(lambda: tokenizer.encode_latents(z), repeats)
    decode_s = best_seconds(lambda: tokenizer.decode_latents(ids, steps=steps), 1)
    return [
        Speed("encode", dtype, batch / encode_s, encode, peak),
        Speed(f"decode, {steps} guided steps", dtype, batch / decode_s, decode, peak),
    ]


def agreement(exact: Tensor, rounded: Tensor) -> list[float]:
    """Share of images [0, 1] whose ids [B,L] are equal, for each of the L positions."""
    return (exact == rounded).float().mean(dim=0).tolist()


def agreement_table(name: str, shares: list[float]) -> list[str]:
    """Agreement over all positions, then for each, POSITIONS_A_ROW in a row of a Markdown table."""
    lines = [
        f"### {name}: {sum(shares) / len(shares):.1%} over all positions",
        "",
        "| positions | " + " | ".join(f"+{offset}" for offset in range(POSITIONS_A_ROW)) + " |",
        "|" + " --- |" * (POSITIONS_A_ROW + 1),
    ]
    for start in range(0, len(shares), POSITIONS_A_ROW):
        cells = [f"{share:.0%}" for share in shares[start : start + POSITIONS_A_ROW]]
        cells += [""] * (POSITIONS_A_ROW - len(cells))
        lines.append(f"| {start} | {' | '.join(cells)} |")
    return [*lines, ""]


def trained_agreement(path: str, images: int) -> list[float]:
    """`agreement` of a trained tokenizer on latents that it decodes from random ids."""
    exact, rounded = (load_tokenizer(path, dtype=dtype) for dtype in NAMES)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(exact.vocab_size, (images, exact.num_tokens), generator=generator)
    z = exact.decode_latents(ids, steps=10, guidance=1.0)
    return agreement(exact.encode_latents(z), rounded.encode_latents(z))


def report(arguments: argparse.Namespace) -> str:
    """This section of the benchmarks."""
    device = torch.device(arguments.device)
    tokenizer = d12_tokenizer(device)
    z = torch.randn(arguments.images, *tokenizer.latent_shape, generator=torch.Generator().manual_seed(1))
    speeds, ids = [], {}
    for dtype in NAMES:
        tokenizer = tokenizer.prepare(dtype)
        ids[dtype] = torch.cat([tokenizer.encode_latents(part).cpu() for part in z.split(arguments.batch)])
        speeds += measure(tokenizer, dtype, arguments.batch, arguments.steps, arguments.repeats)
    agreements = {"d12 with random weights": agreement(*(ids[dtype] for dtype in NAMES))}
    if arguments.tokenizer:
        agreements["the demo's trained tokenizer"] = trained_agreement(arguments.tokenizer, TRAINED_IMAGES)
    machine = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    command = " ".join(["python -m flextok.bench.model", *sys.argv[1:]])
    lines = [
        "## Tokenizer",
        "",
        f"`{command}` on {machine}, torch {torch.__version__}, Python {platform.python_version()}.",
        f"d12-d12, 256 patches and 256 registers, batches of {arguments.batch}, latents in and out.",
        f"The peak is that of a {PEAK_SIZE}x{PEAK_SIZE} matrix product in the same run.",
        "",
        "| task | precision | images/s | GFLOP an image | share of peak |",
        "| --- | --- | --- | --- | --- |",
        *(speed.row() for speed in speeds),
        "",
        f"Ids that bfloat16 has in common with float32, on {arguments.images} random latents (d12) and {TRAINED_IMAGES}",
        "latents decoded from random ids (trained):",
        "",
        *(line for name, shares in agreements.items() for line in agreement_table(name, shares)),
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="a trained checkpoint for the agreement of precisions")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--images", type=int, default=64, help="images for the agreement of precisions")
    parser.add_argument("--steps", type=int, default=2, help="sampler steps of a timed decoding")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(report(arguments))


if __name__ == "__main__":
    main()
