"""Samples and their distance: reproducible draws, balanced classes, and random tokens as the baseline."""

import collections

import numpy as np
import pytest
import torch
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.data.corpus.reader import Corpus
from flextok.data.images import to_uint8
from flextok.data.tokens import TokenStore, verify_tokens
from flextok.errors import UsageError
from flextok.evaluate.config import SamplesConfig
from flextok.evaluate.generation import evaluate_generation, random_ids
from flextok.evaluate.sampling import open_samples, read_images, sample_images
from flextok.model.checkpoint import save_checkpoint
from flextok.model.load import load_prior, load_tokenizer
from flextok.model.priors.base import Prior
from flextok.model.priors.config import PriorConfig
from flextok.model.tokenizer import Tokenizer
from flextok.provenance import lineage


def test_samples_are_a_token_store_with_balanced_labels(pipeline: TinyPipeline):
    store = TokenStore.open(pipeline.samples.url)
    assert verify_tokens(pipeline.samples.url) == []
    counts = collections.Counter(store.labels().tolist())
    assert len(store) == 32
    assert set(counts.values()) == {2}
    assert store[3].text == Corpus.open(pipeline.train).classes[3]
    assert store.meta.order == "nested"


def test_draws_do_not_depend_on_the_batch(pipeline: TinyPipeline):
    config = EVALUATION.model_copy(update={"batch_size": 5})
    classes = Corpus.open(pipeline.train).classes
    again = sample_images(pipeline.prior, pipeline.tokenizer, str(pipeline.root / "samples"), config, classes)
    assert again.digest == pipeline.samples.digest


def test_digest_covers_what_decides_the_pictures(pipeline: TinyPipeline):
    config = EVALUATION.model_copy(update={"steps": 3})
    classes = Corpus.open(pipeline.train).classes
    other = sample_images(pipeline.prior, pipeline.tokenizer, str(pipeline.root / "samples"), config, classes)
    assert other.digest != pipeline.samples.digest


def test_the_whole_law_of_the_settings_is_drawn_by(pipeline: TinyPipeline):
    law = {"guidance": 4.0, "guidance_schedule": {"kind": "linear"}, "temperature": 2.0, "last_temperature": 0.1}
    law |= {"top_k": 9, "top_p": 0.95, "min_p": 0.01}
    config = EVALUATION.model_copy(update={"samples": SamplesConfig.model_validate({"num": 16, "keep": [1], **law})})
    drawn = sample_images(pipeline.prior, pipeline.tokenizer, str(pipeline.root / "samples"), config)
    ids = load_prior(pipeline.prior).generate(labels=range(16), **law)
    assert TokenStore.open(drawn.url).ids().tolist() == ids.tolist()
    assert open_samples(drawn.url)[1]["sampler"]["guidance_schedule"] == {"kind": "linear"}


def test_pictures_are_the_decoded_rows(pipeline: TinyPipeline):
    store, tokenizer = TokenStore.open(pipeline.samples.url), load_tokenizer(pipeline.tokenizer)
    keys = store.keys()[:3]
    ids = torch.from_numpy(store.ids()[:3].astype(np.int64))
    decoded = tokenizer.detokenize(ids, keep=2, steps=2, guidance=2.0, seed=0, sample_ids=keys)
    difference = np.abs(read_images(pipeline.samples.url, 2, keys).astype(int) - to_uint8(decoded))
    assert difference.max() <= 1


def test_prior_of_another_tokenizer_is_refused(pipeline: TinyPipeline):
    trained = load_tokenizer(pipeline.tokenizer)
    other = Tokenizer.create(trained.config, seed=9)
    saved = save_checkpoint(str(pipeline.root / "other"), "tokenizer", other.state_dict(), other.config, [], {})
    with pytest.raises(UsageError, match="tokenizer"):
        sample_images(pipeline.prior, saved.url, str(pipeline.root / "samples"), EVALUATION)
    with pytest.raises(UsageError, match="tokenizer"):
        evaluate_generation(pipeline.samples.url, pipeline.val, saved.url, pipeline.evaluations, EVALUATION)


def test_captions_steer_a_text_prior_in_turn(pipeline: TinyPipeline):
    tokenizer = load_tokenizer(pipeline.tokenizer)
    config = PriorConfig(
        width=16, depth=1, head_dim=16, condition="text", num_tokens=4, vocab_size=16, tokenizer=tokenizer.digest
    )
    prior = Prior.create(config, seed=0)
    url = save_checkpoint(str(pipeline.root / "text"), "prior", prior.state_dict(), prior.config, [], {}).url
    folder, captions = str(pipeline.root / "samples"), ["a red disk", "a ring", "nothing"]
    samples = sample_images(url, pipeline.tokenizer, folder, EVALUATION, texts=captions)
    assert TokenStore.open(samples.url).texts()[:4] == [*captions, captions[0]]
    with pytest.raises(UsageError, match="captions"):
        sample_images(url, pipeline.tokenizer, folder, EVALUATION)


def test_samples_and_random_tokens_are_measured_alike(pipeline: TinyPipeline):
    assert list(pipeline.generation.curve("fd_random_conv_samples")) == [1, 2, 4]
    assert list(pipeline.generation.curve("fd_random_conv_random_tokens")) == [4]
    protocols = {(item["name"], item["k"]): item["protocol"] for item in pipeline.generation.metrics}
    sampled, baseline = protocols["fd_random_conv_samples", 4], protocols["fd_random_conv_random_tokens", 4]
    assert sampled["distance"] == baseline["distance"]
    assert sampled["decoder"] == baseline["decoder"]
    assert sampled["sampler"]["prior_guidance"] == EVALUATION.samples.guidance
    assert sampled["prior"] == lineage(pipeline.samples.url)["inputs"][0]["digest"]


def test_generation_digest_is_reproducible(pipeline: TinyPipeline):
    again = evaluate_generation(
        pipeline.samples.url, pipeline.val, pipeline.tokenizer, pipeline.evaluations, EVALUATION
    )
    assert again.digest == pipeline.generation.digest


def test_random_ids_are_uniform_and_their_own_for_each_key(pipeline: TinyPipeline):
    store = TokenStore.open(pipeline.samples.url)
    keys = [f"{index}" for index in range(2000)]
    ids = random_ids(store, keys, seed=0)
    counts = torch.bincount(ids.flatten(), minlength=store.vocab_size)
    assert ids.shape == (2000, store.num_tokens)
    assert counts.min() > 0.8 * counts.float().mean()
    assert torch.equal(random_ids(store, keys[7:8], seed=0)[0], ids[7])


def test_open_samples_refuses_other_artifacts(pipeline: TinyPipeline):
    assert open_samples(pipeline.samples.url)[0] == pipeline.samples
    with pytest.raises(UsageError, match="samples"):
        open_samples(pipeline.val_tokens)
