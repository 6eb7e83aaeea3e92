"""Bulk tokenization where nothing goes wrong: rows, resuming, refusing, settings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import flextok
from flextok.bench.cluster import measure_scheduling
from flextok.data import images
from flextok.data.corpus.reader import Corpus, iter_shard
from flextok.data.tokens import TokenStore, verify_tokens
from flextok.errors import FlextokError, UsageError
from flextok.provenance import lineage
from flextok.runtime.lock import locked
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.job import tokenize_corpus


def run(inputs, dest, corpus=None, config=None, compute=None):
    return tokenize_corpus(
        corpus or inputs.corpus,
        inputs.tokenizer,
        str(dest),
        config or inputs.config,
        compute or inputs.compute,
        progress=False,
    )


def test_rows_are_those_of_encoding_one_by_one(inputs, undisturbed):
    """Every sample of every shard is there once, in order, with its own label, caption, hash and tokens."""
    store = TokenStore.open(undisturbed[0])
    tokenizer = flextok.load_tokenizer(inputs.tokenizer)
    corpus = Corpus.open(inputs.corpus)
    samples = [sample for shard in corpus.shards for sample in iter_shard(corpus.url, shard)]
    assert store.keys() == [sample.key for sample in samples]
    assert store.labels().tolist() == [sample.label for sample in samples]
    assert store.texts() == [sample.text for sample in samples]
    crops = [images.center_crop(images.decode(sample.image).rgb, 32) for sample in samples]
    alone = torch.cat([tokenizer.tokenize(images.to_model(crop[None])) for crop in crops]).numpy()
    assert len(np.unique(alone)) > 50
    assert (store.ids() == alone).mean() > 0.999  # a latent on the edge of two ids may be rounded either way
    assert verify_tokens(undisturbed[0], inputs.corpus) == []


def test_files_carry_their_lineage(inputs, undisturbed):
    url, digest = undisturbed
    corpus = Corpus.open(inputs.corpus)
    manifest = json.loads((Path(url) / "manifest.json").read_text())
    assert manifest["digest"] == digest
    assert [(e["shard"], e["rows"], e["source_sha256"]) for e in manifest["shards"]] == [
        (shard.name, shard.samples, shard.sha256) for shard in corpus.shards
    ]
    meta = pq.read_schema(f"{url}/000002.parquet").metadata
    tokenizer = flextok.load_tokenizer(inputs.tokenizer)
    expected = {
        "format": "flextok.tokens/1", "tokenizer": tokenizer.digest, "corpus": corpus.digest, "source": "000002",
        "source_sha256": corpus.shards[2].sha256, "vocab_size": "320", "num_tokens": "8", "codebooks": "1",
        "order": "nested", "dtype": "float32", "code_version": flextok.__version__,
    }  # fmt: skip
    assert {name: meta[f"flextok.{name}".encode()].decode() for name in expected} == expected
    assert json.loads(meta[b"flextok.preprocess"]) == images.preprocess(32)
    assert len(meta[b"flextok.fingerprint"]) == 64
    tree = lineage(url)
    assert {(node["kind"], node["found"]) for node in tree["inputs"]} == {("corpus", True), ("tokenizer", True)}


def test_finished_shards_are_skipped_and_others_made_again(inputs, undisturbed, tmp_path):
    """Nothing to do needs no Ray call and changes no byte; a missing, a damaged and a foreign shard are made again."""
    dest = Path(shutil.copytree(undisturbed[0], tmp_path / "t"))
    before = {path.name: path.read_bytes() for path in dest.iterdir()}
    assert run(inputs, dest).skipped == 6
    assert {path.name: path.read_bytes() for path in dest.iterdir()} == before

    (dest / "000000.parquet").unlink()
    damaged = bytearray(before["000001.parquet"])
    damaged[100] ^= 1
    (dest / "000001.parquet").write_bytes(damaged)
    shutil.copy(dest / "000003.parquet", dest / "000002.parquet")
    shutil.copy(dest / "000003.parquet", dest / "000099.parquet")
    (dest / ".tmp-left-by-a-killed-writer").write_bytes(b"half")
    summary = run(inputs, dest)
    assert (summary.skipped, summary.digest) == (3, undisturbed[1])
    assert sorted(path.name for path in dest.iterdir()) == sorted(before)
    assert verify_tokens(str(dest), inputs.corpus) == []


def test_another_tokenizers_folder_is_refused(inputs, undisturbed, tmp_path):
    dest = Path(shutil.copytree(undisturbed[0], tmp_path / "t"))
    other = flextok.load_tokenizer(inputs.tokenizer)
    from flextok.model.checkpoint import save_checkpoint

    state = {name: value * 1.01 for name, value in other.state_dict().items()}
    saved = save_checkpoint(str(tmp_path / "ck"), "tokenizer", state, other.config, [], {})
    with pytest.raises(UsageError, match="another folder"):
        tokenize_corpus(inputs.corpus, saved.url, str(dest), inputs.config, inputs.compute, progress=False)
    assert verify_tokens(str(dest)) == []


def test_destination_that_holds_something_else_is_refused(inputs, tmp_path, corpus_copy):
    with pytest.raises(UsageError, match=r"flextok\.corpus/1"):
        run(inputs, corpus_copy)
    with pytest.raises(UsageError, match="can be written"):
        run(inputs, Path(corpus_copy) / "manifest.json" / "tokens")


def test_two_jobs_on_one_destination(inputs, tmp_path):
    with locked(str(tmp_path / "t")), pytest.raises(FlextokError, match="another run"):
        run(inputs, tmp_path / "t")


def test_wrong_inputs_are_told_before_any_work(inputs, tmp_path):
    with pytest.raises(UsageError, match=r"keep in 1\.\.8, found 9"):
        run(inputs, tmp_path / "t", config=TokenizeConfig(keep=9))
    with pytest.raises(UsageError, match="corpus"):
        run(inputs, tmp_path / "t", corpus=str(tmp_path / "nothing"))
    with pytest.raises(FlextokError):
        tokenize_corpus(inputs.corpus, str(tmp_path / "none"), str(tmp_path / "t"), inputs.config, inputs.compute)


@pytest.mark.slow
def test_keep_views_and_length(inputs, undisturbed, tmp_path):
    """A cut, flipped and fixed-length store pairs each row with the right image, and its prefix is the whole's."""
    config = TokenizeConfig(
        batch_size=8, keep=4, views=("center", "center_flip"), length={"kind": "fixed", "tokens": 3}
    )
    summary = run(inputs, tmp_path / "t", config=config)
    whole, store = TokenStore.open(undisturbed[0]), TokenStore.open(summary.url)
    assert (len(store), store.num_tokens, set(store.lengths().tolist())) == (2 * len(whole), 4, {3})
    np.testing.assert_array_equal(store.ids()[::2], whole.ids(keep=4))
    table = store.to_arrow()
    assert table["view"].to_pylist() == ["center", "center_flip"] * len(whole)
    assert table["key"].to_pylist()[::2] == table["key"].to_pylist()[1::2] == whole.keys()
    assert (store.ids()[1::2] != store.ids()[::2]).any()
    assert verify_tokens(summary.url, inputs.corpus) == []


@pytest.mark.slow
def test_more_actors_give_the_same_store(inputs, undisturbed, tmp_path):
    compute = inputs.compute.model_copy(update={"tokenize_actors": (2, 2), "threads": 1})
    assert run(inputs, tmp_path / "t", compute=compute).digest == undisturbed[1]


def test_a_job_without_work_has_an_outcome_of_each_shard(ray_session):
    speed = measure_scheduling(actors=2, shards=200, images=10)
    assert speed.shards == 200
    assert 0 < speed.first_s < speed.start_s
