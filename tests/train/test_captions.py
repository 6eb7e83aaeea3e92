"""A prior trained on stored features of captions is the one that encodes them, and one caption is drawn at each visit."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from flextok.data.text_features import TextFeatureStore, TextMeta, write_feature_manifest, write_feature_shard
from flextok.data.text_features import store as store_module
from flextok.data.tokens import (
    TokenMeta,
    TokenStore,
    token_schema,
    token_table,
    write_token_manifest,
    write_token_shard,
)
from flextok.errors import IntegrityError, UsageError
from flextok.model.load import load_prior
from flextok.model.rng import SampleRng
from flextok.model.text import TEXT_ENCODERS, TextFeatures, text_encoder
from flextok.provenance import read_provenance
from flextok.runtime.compute import ComputeConfig
from flextok.train.captions import StoredCaptions
from flextok.train.config import PriorRecipe
from flextok.train.job import TrainResult, run_url
from flextok.train.prior import PriorJob, PriorObjective, train_prior

HERE = ComputeConfig(train_workers=0)
CPU = torch.device("cpu")
ROWS = 24
RECIPE = PriorRecipe.model_validate(
    {
        "model": {
            "width": 32,
            "depth": 1,
            "head_dim": 16,
            "condition": "text",
            "text_encoder": "halves",
            "context_width": 64,
        },
        "train": {"steps": 12, "batch_size": 8, "validate_every": 6, "log_every": 6, "precision": "float32"},
    }
)


class Halves:
    """The hashed words rounded to float16, as they are stored: an encoder with weights for all that anybody knows."""

    width = 64

    def __init__(self, argument: str, device: torch.device):
        self.digest, self._words = f"{argument or 'ab'}{'0' * 60}", text_encoder("hashed-words", device)

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        found = self._words.encode(texts)
        return TextFeatures(found.values.half().float(), found.mask)


@pytest.fixture(scope="module", autouse=True)
def halves() -> Iterator[None]:
    TEXT_ENCODERS.add("halves", Halves)
    yield
    TEXT_ENCODERS.remove("halves")


def captions(row: int) -> list[str]:
    return [f"scene {row % 5}", f"a picture of the scene {row % 5} with more words"][: 1 + row % 2]


def tokens(folder: Path, keys: Sequence[int] = range(ROWS)) -> str:
    """Rows whose ids the caption tells."""
    meta = TokenMeta(tokenizer="ab" * 32, vocab_size=7, num_tokens=3)
    ids = np.array([[row % 5, row % 5, 3] for row in keys])
    columns = {"key": [f"k{row}" for row in keys], "text": [captions(row)[0] for row in keys]}
    schema = token_schema(meta)
    record = write_token_shard(str(folder / "000000.parquet"), schema, [token_table(schema, ids, columns)])
    write_token_manifest(str(folder), "tokens", [record], meta, [], {})
    return str(folder)


def features(folder: Path, name: str = "halves", count: int | None = None, rows: int = ROWS) -> str:
    """Features of all captions of the images, or of the first `count` of each."""
    encoder = text_encoder(name, CPU)
    meta = TextMeta(encoder.digest, name, encoder.width)
    images = []
    for row in range(rows):
        found = [encoder.encode([caption]) for caption in captions(row)[:count]]
        images.append((f"k{row}", [item.values[0].numpy() for item in found]))
    record = write_feature_shard(str(folder / "000000.safetensors"), meta, images)
    write_feature_manifest(str(folder), [record], meta, [], {})
    return str(folder)


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, TrainResult]:
    """Token stores, and what is trained on them with captions encoded at every step."""
    root = tmp_path_factory.mktemp("prior")
    train, val = tokens(root / "train"), tokens(root / "val", [4, 2, 9])
    return train, val, train_prior(RECIPE, train, val, str(root / "prior"), HERE)


def test_training_on_stored_features_is_training_that_encodes(encoding, tmp_path: Path, monkeypatch) -> None:
    train, val, encoded = encoding
    stored = {train: features(tmp_path / "train", count=1), val: features(tmp_path / "val", count=1)}
    with monkeypatch.context() as patch:
        patch.setattr(Halves, "encode", None)  # nothing is encoded
        made = train_prior(RECIPE, train, val, str(tmp_path / "prior"), HERE, stored)
    assert made.digest == encoded.digest and made.metrics["val/loss"] == encoded.metrics["val/loss"]
    assert load_prior(made.url).config.text_encoder_digest == text_encoder("halves", CPU).digest
    kinds = [item["kind"] for item in read_provenance(made.url)["inputs"]]
    assert kinds == ["tokens", "tokens", "text_features", "text_features"]


def test_each_visit_draws_one_of_the_captions(tmp_path: Path) -> None:
    """Rows are found by their keys, whatever is missing or repeated; padding is masked."""
    rows = [5, 2, 5, 8]
    store, stored = TokenStore.open(tokens(tmp_path / "t", rows)), TextFeatureStore.open(features(tmp_path / "f"))
    read, encoder = StoredCaptions([(store, stored), (store, stored)]), text_encoder("halves", CPU)
    for draws, wanted in {(0.0, 0.9, 0.49): (0, 0, 0), (0.5, 0.0, 0.999): (1, 0, 1)}.items():
        found = read.features([0, 5, 6], torch.tensor(draws))  # keys 5, 2, 5
        expected = encoder.encode([captions(row)[place] for row, place in zip((5, 2, 5), wanted, strict=True)])
        assert torch.equal(found.values, expected.values) and torch.equal(found.mask, expected.mask)
    first = read.features([7, 0], None)
    assert torch.equal(first.values, encoder.encode([captions(8)[0], captions(5)[0]]).values)


def test_the_drawn_captions_follow_the_samples_stream(encoding, tmp_path: Path) -> None:
    """The same run twice is the same to the bit; with a second caption it is another than without."""
    train, val, encoded = encoding
    stored = {train: features(tmp_path / "train"), val: features(tmp_path / "val")}
    made = [train_prior(RECIPE, train, val, str(tmp_path / name), HERE, stored).digest for name in "ab"]
    assert made[0] == made[1] != encoded.digest


def test_features_of_another_encoder_or_width_are_refused(encoding, tmp_path: Path) -> None:
    train, _, _ = encoding

    def refused(told: str, stored: str, **model: object) -> None:
        recipe = RECIPE.model_copy(update={"model": RECIPE.model.model_copy(update=model)})
        with pytest.raises(UsageError, match=told) as error:
            train_prior(recipe, train, None, str(tmp_path / "prior"), HERE, {train: stored})
        assert "\n" not in str(error.value)

    refused("expected text features 32 wide, .* found 64", features(tmp_path / "halves"), context_width=32)
    refused(
        "expected text features of halves, ab00.*, found those of halves:cd", features(tmp_path / "cd", "halves:cd")
    )
    refused("found none for some images", features(tmp_path / "few", rows=ROWS - 1))
    refused("expected text features .* with a manifest.json", train)
    # The same weights by another name are the same encoder.
    made = train_prior(RECIPE, train, None, str(tmp_path / "p"), HERE, {train: features(tmp_path / "ab", "halves:ab")})
    assert load_prior(made.url).generate(text=["scene 4"]).shape == (1, 3)


def test_a_run_without_stored_features_is_known_as_before(encoding) -> None:
    train, val, _ = encoding
    plain, stored = (PriorJob(RECIPE, ((train, 1.0),), val, "out", text) for text in ((), ((train, train),)))
    assert run_url(plain) == run_url(PriorJob(RECIPE, ((train, 1.0),), val, "out")) != run_url(stored)


def test_what_is_kept_of_features_does_not_grow_with_their_shards(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "KEPT_ENDS", 20)
    encoder = text_encoder("halves", CPU)
    meta, records = TextMeta(encoder.digest, "halves", encoder.width), []
    for shard in range(6):
        images = [(f"k{shard}{row}", [np.full((1, 64), 10 * shard + row)]) for row in range(4)]
        records.append(write_feature_shard(str(tmp_path / f"{shard:06d}.safetensors"), meta, images))
    write_feature_manifest(str(tmp_path), records, meta, [], {})
    store = TextFeatureStore.open(str(tmp_path))
    for shard in (*range(6), 0, 5, 0):
        assert [store.features(shard, row, 0)[0, 0] for row in range(4)] == [10 * shard + row for row in range(4)]
        assert len(store._ends) <= 2
    (tmp_path / "000003.safetensors").write_bytes((tmp_path / "000003.safetensors").read_bytes()[:-100])
    with pytest.raises(IntegrityError, match=r"expected .* bytes at .* of .*000003.safetensors, found"):
        store.features(3, 0, 0)


def test_captions_are_drawn_alike_for_slices_of_a_batch(encoding, tmp_path: Path) -> None:
    """Each slice has the captions that the whole batch has, and no more padding than its own need."""
    train, _, _ = encoding
    stored = StoredCaptions([(TokenStore.open(train), TextFeatureStore.open(features(tmp_path / "f")))])
    rng = SampleRng(0, range(30, 38))
    objective = PriorObjective(load_prior(encoding[2].url), TokenStore.open(train), RECIPE.train, None, stored)
    batch = objective.fetch(np.array([0, 1, 2, 3, 5, 8, 13, 21]), rng)
    for cut in (slice(0, 8), slice(0, 1), slice(3, 7)):
        _, found = objective._conditions({name: tensor[cut] for name, tensor in batch.items()})
        wanted = stored.features(batch["rows"][cut].tolist(), rng.uniform("caption")[cut])
        assert found is not None
        assert torch.equal(found.values, wanted.values) and torch.equal(found.mask, wanted.mask)
