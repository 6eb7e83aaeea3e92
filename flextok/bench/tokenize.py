"""How fast bulk tokenization is, against its own parts and against the usual loop, in one run on one machine.

    python -m flextok.bench.tokenize --source PICTURES --model smoke
    python -m flextok.bench.tokenize --source PICTURES --model d12 --images 480

Printed as Markdown, images/s unless said: `model` (the tokenizer alone on tensors that are ready, in the fastest
way, freed memory kept as an actor keeps it), `decode` (files to crops alone, by as many processes as the stage has
decoders: one a core, or --decoders), `stage` (JPEG shards to Parquet by `tokenize_corpus`, from the first shard's start;
Ray's start stands beside it), `peer` (the usual loop as it is usually run: a DataLoader before the tokenizer, one .npy an
image). `limit` is what the stage could reach: the slower of model and decode, and on a CPU, where both share the cores, no
more than all cores can do of both at once. With --decoders one below the cores, decoding is the limit as beside an
accelerator: the model has a core of its own.
"""

import argparse
import dataclasses
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import torch
from torch.utils.data import DataLoader, Dataset

from flextok.bench.data import pictures_below, repeat_by_links
from flextok.data.config import CorpusConfig
from flextok.data.corpus.crops import Crops, crop_stored
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus, Sample, iter_shard
from flextok.data.images import to_model
from flextok.data.tokens import (
    TokenMeta,
    TokenStore,
    summarize_tokens,
    token_schema,
    token_table,
    write_token_manifest,
    write_token_shard,
)
from flextok.model.autoencoders.config import AutoencoderConfig, AutoencoderKLConfig, ConvAutoencoderConfig
from flextok.model.checkpoint import save_checkpoint
from flextok.model.config import TokenizerConfig
from flextok.model.decoders.config import FlowDecoderConfig
from flextok.model.load import load_tokenizer
from flextok.model.nn.config import TrunkConfig
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.cluster import ensure_ray, stop_ray
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.memory import keep_freed_memory
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.decoding import DecodeThreads
from flextok.tokenize.encoding import Batch, Encoder, takes_single_images
from flextok.tokenize.job import TokenizeSummary, tokenize_corpus

TINIEST = TrunkConfig(width=32, depth=1, head_dim=32)
TINY = TrunkConfig(width=128, depth=4, head_dim=32)
D12, D18, D28 = (TrunkConfig(width=64 * depth, depth=depth) for depth in (12, 18, 28))
CONV = ConvAutoencoderConfig(channels=64, blocks=2)
MODELS: dict[str, tuple[AutoencoderConfig, int, int, TrunkConfig, TrunkConfig]] = {
    "none": (ConvAutoencoderConfig(channels=8, blocks=0), 32, 1, TINIEST, TINIEST),
    "smoke": (CONV, 32, 16, TINY, TINY),
    "d12": (AutoencoderKLConfig(), 256, 256, D12, D12),
    "d18": (AutoencoderKLConfig(), 256, 256, D18, D28),
}
"""Latents, image size, registers, encoder and decoder. Speed does not depend on the weights, which are random. "none" is
next to no model: decoding alone is the limit, also where both share the cores."""
SHARD_SAMPLES = 1000
SCALES = (1, 4, 16)
SCALED_IMAGES = 9600
MODEL_S = 20
MOST_IN_MEMORY = 4800
"""Images that decoding alone and, at most, the usual loop are timed on."""
STORE_ROWS, STORE_TOKENS = 1_000_000, 256


def build_tokenizer(name: str, parent_url: str) -> str:
    """A checkpoint of that size with random weights; gives its URL."""
    latents, image_size, registers, encoder, decoder = MODELS[name]
    config = TokenizerConfig(
        latents=latents,
        image_size=image_size,
        registers=registers,
        encoder=encoder,
        decoder=FlowDecoderConfig(trunk=decoder),
    )
    tokenizer = Tokenizer.create(config, seed=0)
    return save_checkpoint(parent_url, "tokenizer", tokenizer.state_dict(), config, [], {}).url


def build_corpus(source: str, images: int, dest: str) -> str:
    """A corpus of so many images, the pictures in `source` again and again under different keys; gives its URL."""
    with tempfile.TemporaryDirectory() as links:
        repeat_by_links(Path(source), Path(links), images)
        config = CorpusConfig(name="bench", source=links, format="folder", shard_samples=SHARD_SAMPLES)
        return shard_corpus(config, "all", dest, workers=os.cpu_count() or 1, progress=False).url


def model_rate(encoder: Encoder, seconds: float, cores: int) -> tuple[float, int]:
    """Images/s of the tokenizer on a batch that is ready on its device, and the cores it was fastest with.

    The best of: one thread, torch's threads on all cores, and the encoder's own threads where it takes single images.
    """
    pixels = np.zeros((encoder.batch_size, encoder.size_px, encoder.size_px, 3), np.uint8)
    batch = Batch(pixels, [{"key": str(row), "view": "center"} for row in range(len(pixels))])
    ready = torch.zeros(len(pixels), 3, encoder.size_px, encoder.size_px, device=encoder.tokenizer.device)

    def rate(call: Callable[[], Any]) -> float:
        call()
        begun, calls = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            call()
            calls += 1
        return calls * len(pixels) / (time.perf_counter() - begun)

    def whole(threads: int) -> float:
        torch.set_num_threads(threads)
        return rate(lambda: encoder.tokenizer.tokenize(ready).cpu())

    rates = [(whole(cores), cores), (whole(1), 1)]
    if encoder.model_threads:
        rates.append((rate(lambda: encoder.encode(batch)), encoder.model_threads))
    return max(rates)


def decode_rate(paths: list[Path], size_px: int, processes: int) -> float:
    """Images/s from files to crops, by processes that read for themselves and give back nothing."""
    parts = [(paths[start::processes], size_px) for start in range(processes)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(_decode_files, [(part[:8], size_px) for part, _ in parts], chunksize=1)
        begun = time.perf_counter()
        pool.starmap(_decode_files, parts, chunksize=1)
        return len(paths) / (time.perf_counter() - begun)


def _decode_files(paths: list[Path], size_px: int) -> None:
    for path in paths:
        crop_stored(path.read_bytes(), None, size_px)


class _Pictures(Dataset):
    def __init__(self, samples: list[Sample], size_px: int):
        self._samples, self._size_px = samples, size_px

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: int) -> tuple[str, torch.Tensor]:
        sample = self._samples[place]
        decoded = crop_stored(sample.image, sample.meta["sha256"], self._size_px)
        assert isinstance(decoded, Crops)
        return sample.key, to_model(decoded.pixels)[0]


def peer_rate(tokenizer: Tokenizer, samples: list[Sample], batch_size: int, workers: int, folder: Path) -> float:
    """Images/s of a DataLoader before the tokenizer and one .npy for each image."""
    folder.mkdir()
    loader = DataLoader(_Pictures(samples, tokenizer.config.image_size), batch_size, num_workers=workers)
    begun = time.perf_counter()
    for keys, pixels in loader:
        for key, ids in zip(keys, tokenizer.tokenize(pixels).cpu().numpy(), strict=True):
            np.save(folder / f"{key}.npy", ids)
    return len(samples) / (time.perf_counter() - begun)


def stage(
    corpus_url: str, tokenizer_url: str, dest: str, config: TokenizeConfig, compute: ComputeConfig
) -> TokenizeSummary:
    """The whole stage."""
    return tokenize_corpus(corpus_url, tokenizer_url, dest, config, compute, progress=False)


def store_rates(folder: str) -> dict[str, float]:
    """GB/s of ids read from a store of 1 M rows of 256 tokens in the page cache, and by plain pyarrow.dataset."""
    meta = TokenMeta(tokenizer="0" * 64, vocab_size=64_000, num_tokens=STORE_TOKENS)
    schema = token_schema(meta)
    rng = np.random.default_rng(0)
    records = []
    for shard in range(10):
        rows = STORE_ROWS // 10
        ids = rng.integers(0, meta.vocab_size, (rows, STORE_TOKENS), np.uint16)
        table = token_table(schema, ids, {"key": [f"{shard}-{row}" for row in range(rows)]})
        records.append(write_token_shard(f"{folder}/{shard:06d}.parquet", schema, [table]))
    write_token_manifest(folder, "tokens", records, meta, [], {})
    ids_bytes = STORE_ROWS * STORE_TOKENS * 2
    store = TokenStore.open(folder)
    files = sorted(str(path) for path in Path(folder).glob("*.parquet"))

    def best(read: Any) -> float:
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            read()
            times.append(time.perf_counter() - begun)
        return ids_bytes / min(times) / 1e9

    return {
        "store_ids": best(store.ids),
        "store_arrow": best(lambda: store.to_arrow(columns=["tokens"])),
        "pyarrow_dataset": best(lambda: pyarrow.dataset.dataset(files).to_table(columns=["tokens"])),
        "bytes_per_token": sum(record.bytes for record in records) / STORE_ROWS / STORE_TOKENS,
    }


def benchmark(source: str, model: str, images: int, config: TokenizeConfig, compute: ComputeConfig) -> dict[str, Any]:
    """All rates for one model on `images` images, made of the pictures in `source`."""
    cores = compute.num_cpus or os.cpu_count() or 1
    decoders = compute.threads or cores
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_url = build_tokenizer(model, f"{folder}/tokenizer")
        corpus_url = build_corpus(source, images, f"{folder}/corpus")
        samples = list(_samples(Corpus.open(corpus_url), min(images, MOST_IN_MEMORY)))
        device = "cuda" if compute.gpus_per_worker else "cpu"
        tokenizer = load_tokenizer(tokenizer_url, device, getattr(torch, config.dtype))
        batch_size = config.batch_size or 32
        torch.set_num_threads(cores if takes_single_images(tokenizer) else 1)  # the faster, as measured
        peer = peer_rate(tokenizer, samples, batch_size, decoders, Path(folder) / "npy")
        keep_freed_memory(large=True)  # as the stage's actors do, and after the usual loop, which does not
        encoder = Encoder(tokenizer, config, batch_size, DecodeThreads(cores))
        alone, model_cores = model_rate(encoder, MODEL_S, cores)
        pictures = pictures_below(Path(source))
        decoding = decode_rate([pictures[n % len(pictures)] for n in range(MOST_IN_MEMORY)], encoder.size_px, decoders)
        ensure_ray(compute.address, compute.num_cpus)
        summary = stage(corpus_url, tokenizer_url, f"{folder}/tokens", config, compute)
        stop_ray()
        limit = min(alone, decoding)
        if device == "cpu":
            limit = min(limit, cores / (model_cores / alone + decoders / decoding))
        return {
            "model_name": model,
            "device": device,
            "cores": cores,
            "decoders": decoders,
            "batch_size": batch_size,
            "dtype": config.dtype,
            "images": summary.rows,
            "model": alone,
            "decode": decoding,
            "limit": limit,
            "peer": peer,
            "stage": summary.images_per_s,
            "stage_of_limit": summary.images_per_s / limit,
            "stage_of_model": summary.images_per_s / alone,
            "stage_of_decode": summary.images_per_s / decoding,
            "stage_of_peer": summary.images_per_s / peer,
            "start_s": summary.start_s,
            "peak_bytes": summary.peak_bytes,
            "store": summarize_tokens(summary.url),
        }


def scaling(source: str, model: str, config: TokenizeConfig, compute: ComputeConfig) -> list[dict[str, Any]]:
    """Rate and peak memory of the stage on 1, 4 and 16 times the images, each with fresh actors."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_url = build_tokenizer(model, f"{folder}/tokenizer")
        ensure_ray(compute.address, compute.num_cpus)
        for scale in SCALES:
            corpus_url = build_corpus(source, scale * SCALED_IMAGES, f"{folder}/corpus{scale}")
            summary = stage(corpus_url, tokenizer_url, f"{folder}/tokens{scale}", config, compute)
            rows.append({"scale": scale, **dataclasses.asdict(summary)})
        stop_ray()
    return rows


def _samples(corpus: Corpus, most: int) -> Iterator[Sample]:
    for shard in corpus.shards:
        for sample in iter_shard(corpus.url, shard):
            if most <= 0:
                return
            most -= 1
            yield sample


def main(arguments: list[str]) -> None:
    """Runs what the arguments ask for and prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder of pictures")
    parser.add_argument("--model", choices=list(MODELS), default="smoke")
    parser.add_argument("--images", type=int, default=19_200, help="images of the measured run")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--decoders", type=int, help="decoding processes of the stage, and of what it is compared with")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of an actor")
    parser.add_argument("--scaling", action="store_true", help="also 1, 4 and 16 times 9,600 images")
    parser.add_argument("--store", action="store_true", help="also the reading of a store of 1 M rows")
    options = parser.parse_args(arguments)
    config = TokenizeConfig.model_validate({"batch_size": options.batch_size, "dtype": options.dtype})
    compute = ComputeConfig.model_validate(
        {"tokenize_actors": (1, 1), "gpus_per_worker": options.gpus, "threads": options.decoders}
    )
    command = " ".join(["python -m flextok.bench.tokenize", *arguments])
    print(f"## Tokenization: {options.model}, {options.dtype}\n\n`{command}`\n")
    print(stage_table(benchmark(options.source, options.model, options.images, config, compute)))
    if options.scaling:
        print(scaling_table(scaling(options.source, options.model, config, compute)))
    if options.store:
        with tempfile.TemporaryDirectory() as folder:
            print(store_table(store_rates(folder)))


def stage_table(rates: dict[str, Any]) -> str:
    """Images/s of the stage and of what it is compared with."""
    compared = {
        "model alone": "model",
        "decoding alone": "decode",
        "limit: all cores at model and decoding": "limit",
        "usual loop: DataLoader, tokenizer, one .npy an image": "peer",
    }
    rows = [f"| {label} | {rates[key]:.4g} | {rates['stage'] / rates[key]:.2f} |" for label, key in compared.items()]
    about = (
        f"{rates['images']:,} images, batches of {rates['batch_size']}, {rates['cores']} cores, {rates['decoders']} decoders; the stage's actor began "
        f"after {rates['start_s']:.0f} s and held at most {rates['peak_bytes'] / 2**20:.0f} MiB."
    )
    stage_row = f"| stage: JPEG shards to Parquet | {rates['stage']:.4g} | 1 |"
    return f"{about}\n\n" + _table("| what | images/s | the stage is so many times as fast |", [stage_row, *rows])


def scaling_table(runs: list[dict[str, Any]]) -> str:
    """Images/s and peak memory by the size of the corpus."""
    rows = [f"| {run['rows']:,} | {run['images_per_s']:.4g} | {run['peak_bytes'] / 2**20:.0f} |" for run in runs]
    return _table("| images | images/s | peak of the actor, MiB |", rows)


def store_table(rates: dict[str, float]) -> str:
    """GB/s of ids by way of reading."""
    ways = {
        "`TokenStore.ids()`": "store_ids",
        "`TokenStore.to_arrow()`": "store_arrow",
        "plain `pyarrow.dataset`": "pyarrow_dataset",
    }
    rows = [f"| {way} | {rates[key]:.2f} |" for way, key in ways.items()]
    about = (
        f"A store of {STORE_ROWS:,} rows of {STORE_TOKENS} tokens, {rates['bytes_per_token']:.2f} bytes a token, in the "
        "page cache:"
    )
    return f"{about}\n\n" + _table("| read with | GB/s of ids |", rows)


def _table(header: str, rows: list[str]) -> str:
    """A Markdown table and an empty line after it."""
    return "\n".join([header, "|" + " --- |" * (header.count("|") - 1), *rows, ""])


if __name__ == "__main__":
    main(sys.argv[1:])
