"""Captions as stored features: those of the encoder, exactly once, whatever happens on the way."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from tokenize_helpers import processes_below

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus, Sample, iter_shard
from flextok.data.text_features import TextFeatureStore, read_feature_shard, verify_text_features, write_feature_shard
from flextok.data.text_features.shard import TextMeta
from flextok.errors import FlextokError, IntegrityError, UsageError
from flextok.model.text import text_encoder
from flextok.provenance import lineage
from flextok.runtime.compute import ComputeConfig
from flextok.runtime.lock import locked
from flextok.storage import sha256_file
from flextok.tokenize.outcome import ShardOutcome
from flextok.tokenize.tasks import task_to_json
from flextok.tokenize.text.actor import CaptionEncoder, captions_of
from flextok.tokenize.text.job import TextSummary, encode_captions, encoder_spec
from flextok.tokenize.text.tasks import text_tasks

SHARDS, IMAGES = 5, 200
COMPUTE = ComputeConfig(num_cpus=2, tokenize_actors=(1, 1))
HARD = ["a red ring above the middle", "🙂 שלום عالم", "ring " * 10_000, "a scarlet hoop"]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures with one to three captions, many of them long so that a shard takes a while."""
    folder = tmp_path_factory.mktemp("captioned")
    lines = []
    for number in range(IMAGES):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number:04d}.png")
        texts = [
            f"{number} {place} {HARD[(number + place) % 4]} {'of many words ' * 8}" for place in range(1 + number % 3)
        ]
        lines.append(json.dumps({"file_name": f"{number:04d}.png", "captions": texts}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    config = CorpusConfig(
        name="captioned", source=str(folder), format="captions", val_fraction=0.0, shard_samples=IMAGES // SHARDS
    )
    made = shard_corpus(config, "train", f"{folder}-sharded", workers=1, progress=False)
    assert made.shards == SHARDS
    return made.url


def encode(corpus: str, dest: Path, compute: ComputeConfig = COMPUTE) -> TextSummary:
    return encode_captions(corpus, encoder_spec("hashed-words"), str(dest), compute, progress=False)


@pytest.fixture(scope="module")
def encoded(captioned: str, ray_session, tmp_path_factory: pytest.TempPathFactory) -> TextSummary:
    """What is made where nothing goes wrong."""
    return encode(captioned, tmp_path_factory.mktemp("encoded") / "text")


def test_features_are_those_of_each_caption_alone(captioned: str, encoded: TextSummary) -> None:
    store, encoder = TextFeatureStore.open(encoded.url), text_encoder("hashed-words", torch.device("cpu"))
    assert (len(store), store.width, store.encoder) == (IMAGES, 64, encoder.digest)
    several = 0
    for number, shard in enumerate(Corpus.open(captioned).shards):
        samples = list(iter_shard(captioned, shard))
        assert store.shards[number].keys() == [sample.key for sample in samples]
        for image, sample in enumerate(samples):
            captions = captions_of(sample)
            assert store.captions(number, image) == len(captions)
            several += len(captions) > 1
            for place, caption in enumerate(captions):
                alone = encoder.encode([caption]).values[0].numpy().astype(np.float16)
                assert np.array_equal(store.features(number, image, place), alone)
    assert several > IMAGES // 3
    assert captions_of(Sample("k", "png", b"", None, None, {"captions": []})) == [""]
    assert [node["kind"] for node in lineage(encoded.url)["inputs"]] == ["corpus"]
    assert verify_text_features(encoded.url) == []


def test_plain_safetensors_reads_a_shard(encoded: TextSummary) -> None:
    shard = TextFeatureStore.open(encoded.url).shards[0]
    tensors = load_file(Path(shard.url))
    assert tensors["features"].dtype == np.float16 and tensors["features"].shape == (tensors["token_ends"][-1], 64)
    assert len(tensors["caption_ends"]) == shard.images and tensors["caption_ends"][-1] == shard.captions
    assert np.array_equal(tensors["features"], shard.read("features"))


def test_actors_killed_in_mid_shard_and_more_of_them_change_nothing(
    captioned: str, encoded: TextSummary, tmp_path: Path
) -> None:
    dest, results = tmp_path / "t", []
    two = COMPUTE.model_copy(update={"tokenize_actors": (2, 2)})
    job = threading.Thread(target=lambda: results.append(encode(captioned, dest, two)))
    job.start()
    while not (dest.exists() and list(dest.glob("*.safetensors")) and list(dest.glob(".tmp-*"))):
        assert job.is_alive(), "the job ended before the fault"
    actors = [pid for pid, command in processes_below(os.getpid()).items() if "CaptionEncoder" in command]
    for pid in actors:
        os.kill(pid, signal.SIGKILL)
    job.join()
    assert actors and results[0].digest == encoded.digest
    assert verify_text_features(str(dest)) == [] and not list(dest.glob(".*"))
    for path in Path(encoded.url).glob("*.safetensors"):
        assert path.read_bytes() == (dest / path.name).read_bytes()


def test_finished_shards_stay_and_others_are_made_again(captioned: str, encoded: TextSummary, tmp_path: Path) -> None:
    """As a kill of the whole job leaves them: no manifest, one shard missing, one cut short, one with another byte."""
    dest = shutil.copytree(encoded.url, tmp_path / "t")
    (dest / "manifest.json").unlink()
    files = sorted(dest.glob("*.safetensors"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-100])
    content = bytearray(files[2].read_bytes())
    content[20_000] ^= 1
    files[2].write_bytes(content)
    (dest / ".tmp-of-a-killed-writer").write_bytes(b"half")
    (dest / "000099.safetensors").write_bytes(files[3].read_bytes())
    with pytest.raises(UsageError, match="run it again to finish it"):
        TextFeatureStore.open(str(dest))
    made = encode(captioned, dest)
    assert (made.digest, made.skipped) == (encoded.digest, SHARDS - 3)
    assert sorted(path.name for path in dest.iterdir()) == sorted(path.name for path in Path(encoded.url).iterdir())
    before = (dest / "manifest.json").read_bytes()
    assert encode(captioned, dest).skipped == SHARDS and (dest / "manifest.json").read_bytes() == before


def test_a_store_that_changed_is_found(encoded: TextSummary, tmp_path: Path) -> None:
    dest = shutil.copytree(encoded.url, tmp_path / "t")
    files = sorted(dest.glob("*.safetensors"))
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1
    files[0].write_bytes(content)
    assert verify_text_features(str(dest)) == ["shard 000000: its bytes are not those that were written"]
    files[0].unlink()
    with pytest.raises(IntegrityError, match=r"000000.safetensors, found nothing; run `flextok encode-text` again"):
        TextFeatureStore.open(str(dest))


def test_a_damaged_image_shard_leaves_no_file(captioned: str, encoded: TextSummary, tmp_path: Path) -> None:
    corpus, spec = shutil.copytree(captioned, tmp_path / "corpus"), encoder_spec("hashed-words")
    task = text_tasks(Corpus.open(str(corpus)), spec, str(tmp_path / "t"))[1]
    worker = CaptionEncoder(spec.name, spec.digest, "cpu")
    damaged = Path(task.source.url)
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    outcome = ShardOutcome.from_json(worker({"task": task_to_json(task)})["outcome"])
    assert outcome.record is None and "000001.tar" in outcome.error
    assert not list((tmp_path / "t").glob("*"))
    damaged.write_bytes(whole)
    record = ShardOutcome.from_json(worker({"task": task_to_json(task)})["outcome"]).record
    assert record is not None and record.sha256 == sha256_file(TextFeatureStore.open(encoded.url).shards[1].url)
    with pytest.raises(IntegrityError, match="expected the text encoder hashed-words, abab"):
        CaptionEncoder(spec.name, "ab" * 32, "cpu")


def test_a_folder_of_something_else_is_refused(captioned: str, encoded: TextSummary, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"flextok\.corpus/1"):
        encode(captioned, Path(captioned))
    other = tmp_path / "other"
    write_feature_shard(str(other / "000000.safetensors"), TextMeta("cd" * 32, "minilm", 4), [("k", [np.ones((2, 4))])])
    with pytest.raises(UsageError, match=r"features of the encoder hashed-words, .* found those of minilm, cdcdcd"):
        encode(captioned, other)
    with locked(str(tmp_path / "t")), pytest.raises(FlextokError, match="another run"):
        encode(captioned, tmp_path / "t")


def test_features_too_large_for_halves_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    for bad in (1e6, np.nan):
        with pytest.raises(IntegrityError, match="float16 can hold, found others for a caption of k"):
            write_feature_shard(
                str(tmp_path / "0.safetensors"), TextMeta("ab", "x", 2), [("k", [np.full((1, 2), bad)])]
            )
    assert not list(tmp_path.iterdir())
    write_feature_shard(str(tmp_path / "0.safetensors"), TextMeta("ab", "x", 2), [("é", [np.zeros((0, 2))])])
    assert read_feature_shard(str(tmp_path / "0.safetensors")).keys() == ["é"]
