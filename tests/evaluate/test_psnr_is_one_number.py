"""A length policy and the evaluation measure the same pictures with the same metric."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_pipeline import EVALUATION, SIZE_PX, TinyPipeline

from flextok.data.corpus.reader import Corpus
from flextok.data.images import to_model
from flextok.evaluate.images import choose_keys, stream_images
from flextok.model.load import load_tokenizer
from flextok.tokenize.lengths.threshold import ThresholdLength


@pytest.mark.parametrize("metric", ["mae", "mse", "psnr"])
def test_policy_and_evaluation_give_the_same_number(pipeline: TinyPipeline, metric: str):
    tokenizer, corpus = load_tokenizer(pipeline.tokenizer), Corpus.open(pipeline.val)
    keys = choose_keys(corpus.index("key")["key"].to_list(), None)
    batch = next(stream_images(corpus, keys, SIZE_PX, EVALUATION.batch_size))
    sampler = {name: getattr(EVALUATION, name) for name in ("steps", "guidance", "norm_guidance", "seed")}
    policy = ThresholdLength(metric=metric, eps=1.0, **sampler)
    ids = tokenizer.tokenize(to_model(batch.images_BHWC))
    keep = np.full(len(batch), 2)
    found = policy.measure(tokenizer, batch.images_BHWC, ids, keep, batch.keys)
    rows = pq.read_table(f"{pipeline.reconstruction.url}/images.parquet").to_pylist()
    expected = {row["key"]: row[metric] for row in rows if row["k"] == 2}
    assert found.tolist() == pytest.approx([expected[key] for key in batch.keys], rel=1e-3)
