"""The encoder: rows depend on their picture alone, however batches and threads are chosen."""

import numpy as np
import pyarrow as pa
import pytest

import flextok
from flextok.data import images
from flextok.data.corpus.pictures import shard_pictures
from flextok.data.corpus.reader import Corpus
from flextok.model.load import tokenizer_spec
from flextok.tokenize import encoding as encoder_module
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.decoding import DecodeThreads
from flextok.tokenize.encoding import Encoder
from flextok.tokenize.lengths.threshold import ThresholdLength
from flextok.tokenize.tasks import ShardTask, shard_tasks


def rows_of(task: ShardTask, encoder: Encoder) -> pa.Table:
    """What `encoder` makes of the shard."""
    with encoder.batches(shard_pictures(task.corpus, task.source, task.index_sha256), []) as batches:
        return pa.concat_tables(encoder.tables(batches, task.schema))


def shown(encoder: Encoder, task: ShardTask) -> list[tuple[str, np.ndarray]]:
    """Keys and pixels of the shard."""
    pictures = shard_pictures(task.corpus, task.source, task.index_sha256)
    with encoder.batches(pictures, []) as batches:
        pairs = [pair for batch in batches for pair in zip(batch.columns, batch.pixels, strict=False)]
    return [(row["key"], pixels) for row, pixels in pairs]


@pytest.mark.parametrize("by_error", [False, True])
def test_single_images_depend_on_neither_batch_nor_threads(inputs, by_error: bool, monkeypatch):
    """As a large model on a CPU takes them, against calls one after another."""
    monkeypatch.setattr(encoder_module, "SMALL_MODEL", 0)
    tokenizer = flextok.load_tokenizer(inputs.tokenizer)
    config = TokenizeConfig(keep=6)
    task = shard_tasks(Corpus.open(inputs.corpus), tokenizer_spec(inputs.tokenizer), "", config)[0]
    pictures = shown(Encoder(tokenizer, config, 8, DecodeThreads(1)), task)
    ids = [tokenizer.tokenize(images.to_model(pixels[None]))[:, :6] for _, pixels in pictures]
    names = [[f"{key}/center"] for key, _ in pictures]
    lengths = [6] * len(pictures)
    if by_error:
        policy = ThresholdLength(metric="mse", eps=1, steps=1)
        inputs_of_each = list(zip([pixels[None] for _, pixels in pictures], ids, names, strict=True))
        third = [
            policy.measure(tokenizer, pixels, tokens, np.array([3]), name) for pixels, tokens, name in inputs_of_each
        ]
        policy = policy.model_copy(update={"eps": float(np.median(third))})
        config = TokenizeConfig(keep=6, length=policy)
        lengths = [int(policy.lengths(tokenizer, *each)[0]) for each in inputs_of_each]
        assert len(set(lengths)) > 1
    narrow, wide = (Encoder(tokenizer, config, *sizes) for sizes in ((3, DecodeThreads(1)), (32, DecodeThreads(4))))
    assert (narrow.model_threads, wide.model_threads) == (1, 4)
    rows = rows_of(task, wide)
    assert rows.equals(rows_of(task, narrow))
    assert rows["key"].to_pylist() == [key for key, _ in pictures]
    assert rows["tokens"].to_pylist() == [tokens[0].tolist() for tokens in ids]
    assert rows["length"].to_pylist() == lengths


def test_a_small_model_takes_whole_batches(inputs):
    encoder = Encoder(flextok.load_tokenizer(inputs.tokenizer), TokenizeConfig(), 8, DecodeThreads(4))
    assert encoder.model_threads == 0
