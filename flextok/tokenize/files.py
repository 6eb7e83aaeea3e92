"""`flextok encode` and `flextok decode`: single pictures to a token file, and token rows back to pictures."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from flextok import storage
from flextok.data import images
from flextok.data.corpus.assignment import make_keys
from flextok.data.corpus.crops import ByteRange, preprocess_record
from flextok.data.corpus.pictures import Picture
from flextok.data.rejects import Reject
from flextok.data.tokens import ShardRecord, TokenMeta, TokenStore, token_schema, write_token_shard
from flextok.data.tokens.schema import values_of
from flextok.errors import FlextokError, UsageError
from flextok.model.decoders.config import SamplerConfig
from flextok.model.load import load_tokenizer
from flextok.model.tokenizer import Tokenizer
from flextok.runtime.progress import track
from flextok.runtime.storage_errors import storage_errors
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.decoding import DecodeThreads
from flextok.tokenize.encoding import Encoder

THREADS = 4
DEFAULT_SAMPLER = SamplerConfig()
LONGEST_NAME = 120


@storage_errors("encode pictures into {out}")
def encode_images(
    paths: Sequence[str], tokenizer_url: str, out: str, config: TokenizeConfig, device: str = "cpu"
) -> ShardRecord:
    """Tokenize the pictures at `paths` (files or URLs) into the Parquet file `out`, in their order.

    The rows are those of a token shard without corpus; keys are made of the file names. Raises UsageError for a path
    that is not there, FlextokError naming every picture that cannot be decoded; nothing is written then.
    """
    if not paths:
        raise UsageError("expected at least one picture, found none; name the files to encode")
    if not out.endswith(".parquet"):
        raise UsageError(f"expected a name ending in .parquet for the tokens, found {out}")
    missing = [path for path in paths if not storage.exists(path)]
    if missing:
        raise UsageError(f"expected pictures, found nothing at {', '.join(missing[:5])}; check the paths")
    tokenizer = load_tokenizer(tokenizer_url, device, getattr(torch, config.dtype))
    if config.keep is not None and config.keep > tokenizer.num_tokens:
        raise UsageError(f"expected keep in 1..{tokenizer.num_tokens}, found {config.keep}")
    batch_size = config.batch_size or min(len(paths) * len(config.views), 32)
    meta = TokenMeta(
        tokenizer=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
        num_tokens=config.keep or tokenizer.num_tokens,
        codebooks=tokenizer.codebooks,
        values=values_of(tokenizer.vocab_size),
        preprocess=preprocess_record(tokenizer.config.image_size, config.views),
        dtype=config.dtype,
        batch_size=batch_size,
    )
    schema = token_schema(meta, views=config.views != ("center",))
    encoder = Encoder(tokenizer, config, batch_size, DecodeThreads(THREADS))
    rejects: list[Reject] = []

    def tables() -> Iterator[Any]:
        with encoder.batches(_pictures(paths), rejects) as batches:
            yield from encoder.tables(batches, schema)
        if rejects:
            listed = "; ".join(f"{reject.source}: {reject.detail} ({reject.reason})" for reject in rejects[:5])
            raise FlextokError(f"expected pictures that decode, found {len(rejects)} that do not: {listed}")

    return write_token_shard(storage.absolute(out), schema, tables())


@storage_errors("decode {url} into {out_dir}")
def decode_tokens(
    url: str,
    tokenizer_url: str,
    out_dir: str,
    keeps: Sequence[int] = (),
    sampler: SamplerConfig = DEFAULT_SAMPLER,
    batch_size: int = 8,
    device: str = "cpu",
) -> list[str]:
    """Decode every row of a token file (or folder) to PNG files in `out_dir`; gives their URLs.

    With `keeps`, a picture for each row and number of tokens, `<key>_k<K>.png`; without, one for each row from the
    tokens its length policy keeps, `<key>.png`. Raises UsageError when the tokens are another tokenizer's or `keeps`
    has a number that is not stored. The noise of a row depends on the sampler's seed and its key, not on the others.
    """
    store = TokenStore.open(url)
    too_many = [keep for keep in keeps if not 1 <= keep <= store.num_tokens]
    if too_many:
        raise UsageError(f"expected keep in 1..{store.num_tokens}, found {too_many[0]}; {url} stores no more tokens")
    tokenizer = load_tokenizer(tokenizer_url, device)
    if tokenizer.digest != store.tokenizer:
        raise UsageError(
            f"expected the tokenizer that made {url}, {store.tokenizer[:12]}, found {tokenizer.digest[:12]}; "
            "give --tokenizer its checkpoint"
        )
    lengths = store.lengths().tolist()
    names = _file_names(store)
    jobs = [
        (row, lengths[row] if keep is None else keep, f"{names[row]}{'' if keep is None else f'_k{keep}'}.png")
        for row in range(len(store))
        for keep in (keeps or (None,))
    ]
    written = []
    with track("decode", len(jobs), "images") as task:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            rows = [store[row] for row, _, _ in batch]
            pixels = _decode(
                tokenizer,
                np.stack([row.numbers for row in rows]),
                [keep for _, keep, _ in batch],
                [f"{row.key}/{row.view}" for row in rows],
                sampler.model_dump(),
            )
            for (_, _, name), picture in zip(batch, pixels, strict=True):
                written.append(storage.join(out_dir, name))
                storage.write_bytes(written[-1], images.to_png(picture))
            task.advance(len(batch))
    return written


def _decode(
    tokenizer: Tokenizer, numbers: np.ndarray, keep: list[int], sample_ids: list[str], sampling: dict[str, Any]
) -> np.ndarray:
    tensor = torch.from_numpy(numbers.astype(np.float32 if tokenizer.is_continuous else np.int64))
    return images.to_uint8(tokenizer.detokenize(tensor, keep=keep, sample_ids=sample_ids, **sampling))


def _pictures(paths: Sequence[str]) -> Iterator[Picture]:
    bases = [path.rstrip("/").rpartition("/")[2].rpartition(".")[0] or path for path in paths]
    # A picture that is named twice is encoded twice, under two keys.
    names = [f"{path}#{number}" if path in paths[:number] else path for number, path in enumerate(paths)]
    keys = make_keys(pl.Series(names), pl.Series(bases))
    for path, key in zip(paths, keys, strict=True):
        yield Picture(path, ByteRange(0, storage.size(path), None), key)


def _file_names(store: TokenStore) -> list[str]:
    """A file name for each row, safe whatever the keys hold, and unique."""
    keys = store.keys()
    views = store.to_arrow(columns=["view"])["view"].to_pylist() if store.has_views else [""] * len(keys)
    names: list[str] = []
    taken: set[str] = set()
    for row, (key, view) in enumerate(zip(keys, views, strict=True)):
        plain = f"{key}_{view}" if view else key
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", plain).lstrip("-")[:LONGEST_NAME] or "row"
        if name != plain or name.lower() in taken:
            name = f"{name}-{row}"
        taken.add(name.lower())
        names.append(name)
    return names
