"""Short measurements before a job: the batch size that pays, and what the whole will take."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from flextok import storage
from flextok.data.corpus.pictures import shard_pictures
from flextok.data.corpus.reader import Corpus
from flextok.data.tokens.schema import bits_of
from flextok.errors import FlextokError
from flextok.model.load import load_tokenizer, spec_of, tokenizer_spec
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.members import unpack_members
from flextok.runtime.memory import keep_freed_memory, peak_memory
from flextok.runtime.nodes import ClusterNodes, Node
from flextok.runtime.storage_errors import storage_errors
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.decoding import DecodeProcesses
from flextok.tokenize.encoding import Encoder, takes_single_images
from flextok.tokenize.scheduler import Workers, choose_workers
from flextok.tokenize.tasks import check_destination, finished_record, finished_records, shard_tasks

DEFAULT_BATCH = 32
SMALLEST_BATCH = 8
LARGEST_BATCH = 512
GAIN_WORTH_DOUBLING = 1.05
LONGEST_CALL_S = 5.0
PROBE_S = 5.0
BYTES_BESIDE_TOKENS = 70
"""Of a row in a shard: key, hash, and what else does not pack."""


@dataclasses.dataclass(frozen=True)
class TokenizePlan:
    """What `tokenize_corpus` would do, with an estimate from a short measurement on this machine."""

    corpus: str
    dest: str
    shards: int
    finished_shards: int
    images: int
    """Still to tokenize."""
    tokens_per_image: int
    bits_per_image: float
    actors: tuple[int, int]
    threads: int
    device: str
    batch_size: int
    images_per_s: float
    """Of one actor, decoding included."""
    seconds: float
    """With all actors at work, without Ray's start."""
    output_bytes: int
    """Of the whole store."""


@storage_errors("plan the tokenization of {corpus_url}")
def plan_tokenization(
    corpus_url: str, tokenizer_url: str, dest: str, config: TokenizeConfig, compute: ComputeConfig
) -> TokenizePlan:
    """The plan of a job, without Ray and without writing anything; takes some seconds and loads the tokenizer.

    Raises UsageError as `tokenize_corpus` would. Actors are counted for this machine, also when the job would join a
    cluster.
    """
    corpus, spec = Corpus.open(corpus_url), tokenizer_spec(tokenizer_url)
    dest = storage.absolute(dest)
    check_destination(dest, spec)
    tasks = shard_tasks(corpus, spec, dest, config)
    finished = finished_records(tasks, finished_record)
    todo = [task for task in tasks if task.name not in finished]
    this_machine = ClusterNodes([Node(compute.cpus(), torch.cuda.device_count())])
    here = compute.model_copy(update={"address": "local"})
    workers = choose_workers([task.source.samples for task in todo], here, this_machine)
    tokenizer = load_tokenizer(tokenizer_url, workers.device, getattr(torch, config.dtype))
    images = sum(task.source.samples for task in todo)
    batch_size = config.batch_size or (find_batch_size(tokenizer) if worth_trying(images) else DEFAULT_BATCH)
    rate = measure(tokenizer, config, batch_size, workers, corpus) if todo else 0.0
    rows = corpus.num_samples * len(config.views)
    bits = tasks[0].meta.ids_per_row * bits_of(spec.vocab_size) if tasks else 0.0
    return TokenizePlan(
        corpus=corpus.url,
        dest=dest,
        shards=len(tasks),
        finished_shards=len(finished),
        images=images,
        tokens_per_image=config.keep or spec.num_tokens,
        bits_per_image=bits,
        actors=(workers.fewest, workers.most),
        threads=workers.threads,
        device=workers.device,
        batch_size=batch_size,
        images_per_s=rate,
        seconds=images / (rate * workers.most) if rate else 0.0,
        output_bytes=int(rows * (bits / 8 + BYTES_BESIDE_TOKENS)),
    )


def worth_trying(images: int) -> bool:
    """Whether a job is large enough for a search of the batch size to pay."""
    return images >= 20_000


def search_batch_size(tokenizer_url: str, dtype: str, workers: Workers, members: bytes) -> int:
    """`find_batch_size` in a process that has the resources of an actor and the driver's `members` of registers."""
    unpack_members(members)
    tokenizer = load_tokenizer(tokenizer_url, workers.device, getattr(torch, dtype))
    return find_batch_size(tokenizer)


def find_batch_size(tokenizer: Tokenizer) -> int:
    """The smallest batch size whose double is hardly faster, fits in memory and takes no more than 5 s a call."""
    if takes_single_images(tokenizer):
        return SMALLEST_BATCH
    with _one_thread():
        return _fastest_batch(tokenizer)


def _fastest_batch(tokenizer: Tokenizer) -> int:
    size_px = tokenizer.config.image_size

    def call(batch: int) -> None:
        pixels = torch.zeros(batch, 3, size_px, size_px, device=tokenizer.device)
        tokenizer.tokenize(pixels).cpu()

    best, best_rate = SMALLEST_BATCH, 0.0
    batch = SMALLEST_BATCH
    while batch <= LARGEST_BATCH:
        try:
            before = _peak_bytes()
            seconds = _seconds(lambda size=batch: call(size))
        except torch.OutOfMemoryError:
            break
        if best_rate and batch / seconds < best_rate * GAIN_WORTH_DOUBLING:
            break
        best, best_rate = batch, batch / seconds
        if 2 * seconds > LONGEST_CALL_S or 2 * (_peak_bytes() - before) > _free_bytes() / 2:
            break
        batch *= 2
    return best


def measure(tokenizer: Tokenizer, config: TokenizeConfig, batch_size: int, workers: Workers, corpus: Corpus) -> float:
    """Images a second of one actor, from tar to token rows, on the first images of the corpus.

    Counted from the first batch on, where there is more than one: until then decoders start.
    """
    keep_freed_memory(large=True)  # as an actor does
    decoders = DecodeProcesses(workers.threads)
    encoder = Encoder(tokenizer, config, batch_size, decoders)
    tasks = shard_tasks(corpus, spec_of("", tokenizer.digest, tokenizer), "", config)
    shards = (shard_pictures(task.corpus, task.source, task.index_sha256) for task in tasks)
    pictures = itertools.chain.from_iterable(shards)
    encoder.warm_up()
    times, rows = [time.perf_counter()], [0]
    with _one_thread(), decoders, encoder.batches(pictures, []) as batches:
        for table in encoder.tables(batches, tasks[0].schema):
            times.append(time.perf_counter())
            rows.append(table.num_rows)
            if times[-1] - times[1] > PROBE_S:
                break
    if len(rows) == 1:
        raise FlextokError(f"expected pictures that decode in {corpus.url}, found none; run `flextok verify` on it")
    first = 1 if len(rows) > 2 else 0
    return sum(rows[first + 1 :]) / len(config.views) / (times[-1] - times[first])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As in an actor."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(call: Callable[[], None]) -> float:
    """The faster of two calls, after one that warms up."""
    call()
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_memory()


def _free_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
