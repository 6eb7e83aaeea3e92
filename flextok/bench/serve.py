"""What serving costs beside the bare loop over the same images, as a Markdown table.

    python -m flextok.bench.serve [--prior CKPT --tokenizer CKPT] [--images 128] [--batch 16]

The loop draws, decodes and writes PNG files in batches that are always full. The server gets as many requests, each for one
image, from clients of which each asks again when it has been answered; they run in the same process, so that what they cost is
in the numbers. Both in turn, in one order and then in the other; medians. Without checkpoints the weights are random.
"""

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import numpy as np
import torch

from flextok.data.images import to_png, to_uint8
from flextok.model.autoencoders.config import ConvAutoencoderConfig
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.load import load_prior, load_tokenizer
from flextok.model.nn.config import TrunkConfig
from flextok.model.priors.base import Prior
from flextok.model.priors.config import AutoregressiveConfig, PriorConfig
from flextok.model.quantizers.config import FSQConfig
from flextok.model.tokenizer import Tokenizer
from flextok.serve.server import serving

HOST = "127.0.0.1"
CLIENTS = 2
"""For each image of a batch: while one is drawn, the next can gather."""
TRUNK = TrunkConfig(width=64, depth=2, head_dim=32)
TOKENIZER = TokenizerConfig(
    latents=ConvAutoencoderConfig(channels=16, blocks=1, latent_channels=4, factor=4),
    image_size=32,
    registers=32,
    encoder=TRUNK,
    quantizer=FSQConfig(levels=(8, 8, 8, 8)),
    decoder=FlowDecoderConfig(trunk=TRUNK),
)
PRIOR = PriorConfig(
    model=AutoregressiveConfig(width=128, depth=4, head_dim=32), num_tokens=32, vocab_size=4096, num_classes=10
)


def bare(prior: Prior, tokenizer: Tokenizer, form: str, images: int, batch: int) -> float:
    """Seconds of the loop."""
    started = time.perf_counter()
    for first in range(0, images, batch):
        numbers = range(first, min(first + batch, images))
        labels = [number % prior.config.num_classes for number in numbers]
        ids = prior.generate(labels=labels, sample_ids=numbers)
        if form == "png":
            _ = [to_png(picture) for picture in to_uint8(tokenizer.detokenize(ids, sample_ids=numbers))]
    return time.perf_counter() - started


def served(url: str, form: str, images: int, clients: int, classes: int) -> tuple[float, list[float]]:
    """Seconds of all requests, and of each."""
    numbers = iter(range(images))

    async def client() -> list[float]:
        seconds = []
        for number in numbers:
            started = time.perf_counter()
            await _ask(url, {"label": number % classes, "id": number, "format": form})
            seconds.append(time.perf_counter() - started)
        return seconds

    async def all_clients() -> list[float]:
        return [second for part in await asyncio.gather(*(client() for _ in range(clients))) for second in part]

    started = time.perf_counter()
    each = asyncio.run(all_clients())
    return time.perf_counter() - started, each


async def _ask(url: str, values: dict[str, object]) -> None:
    place, body = urlsplit(url), json.dumps(values).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = f"POST /generate HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]


def measure(prior: Prior, tokenizer: Tokenizer, form: str, images: int, batch: int, rounds: int) -> dict[str, float]:
    """Medians: `bare` and `served` in images/s, `p50` and `p99` of a request in seconds, `batch` of the loop in seconds."""
    loops, serves, each = [], [], []
    with serving(prior, tokenizer, HOST, 0, batch, queue=images) as server:

        def loop() -> None:
            loops.append(bare(prior, tokenizer, form, images, batch))

        def serve() -> None:
            seconds, requests = served(server.url, form, images, CLIENTS * batch, prior.config.num_classes)
            serves.append(seconds)
            each.extend(requests)

        order: list[Callable[[], None]] = [loop, serve]
        for run in order:
            run()
        for recorded in (loops, serves, each):
            recorded.clear()
        for run in (order + order[::-1]) * rounds:
            run()
    p50, p99 = np.quantile(each, [0.5, 0.99]).tolist()
    seconds = statistics.median(loops)
    return {
        "bare": images / seconds,
        "served": images / statistics.median(serves),
        "p50": p50,
        "p99": p99,
        "batch": seconds * batch / images,
    }


def main() -> None:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", help="a prior over classes; goes with --tokenizer")
    parser.add_argument("--tokenizer")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="images drawn at once")
    parser.add_argument("--rounds", type=int, default=2, help="in each order")
    arguments = parser.parse_args()
    prior = load_prior(arguments.prior) if arguments.prior else Prior.create(PRIOR, 0).eval()
    tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else Tokenizer.create(TOKENIZER, 0)
    prior, tokenizer = prior.prepare(arguments.batch), tokenizer.eval().prepare(torch.float32)
    command = " ".join(["python -m flextok.bench.serve", *sys.argv[1:]])
    print(
        f"## Serving, {torch.get_num_threads()} threads\n\n`{command}` on {platform.machine()}, torch {torch.__version__}. "
        f"{arguments.images} images, {arguments.batch} at once, {CLIENTS * arguments.batch} clients; medians of {2 * arguments.rounds}.\n"
    )
    print("| answer | loop, images/s | served, images/s | served over loop | p50, batches of the loop | p99 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for form in ("tokens", "png"):
        found = measure(prior, tokenizer, form, arguments.images, arguments.batch, arguments.rounds)
        ratios = f"{found['served'] / found['bare']:.2f} | {found['p50'] / found['batch']:.2f} | {found['p99'] / found['batch']:.2f}"
        print(f"| {form} | {found['bare']:.1f} | {found['served']:.1f} | {ratios} |", flush=True)
    print()


if __name__ == "__main__":
    main()
