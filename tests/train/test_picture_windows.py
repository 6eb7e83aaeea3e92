"""Training on pictures of a corpus whose index is larger than memory: the indexes of its shards are read in windows."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flextok.data.config import CorpusConfig, ScenesConfig
from flextok.data.corpus import pictures
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.layout import index_url
from flextok.data.corpus.reader import Corpus
from flextok.errors import FlextokError
from flextok.runtime.compute import ComputeConfig
from flextok.train import autoencoder
from flextok.train.autoencoder import train_autoencoder
from flextok.train.config import AutoencoderRecipe
from flextok.train.data import CorpusImages
from flextok.train.sample_order import sample_order

SIZE = 16
HERE = ComputeConfig(train_workers=0)
RECIPE = AutoencoderRecipe.model_validate(
    {
        "model": {"kind": "conv", "channels": 8, "blocks": 1, "latent_channels": 4, "factor": 4},
        "train": {"steps": 12, "batch_size": 8, "checkpoint_every": 2, "log_every": 6, "precision": "float32"},
    }
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """48 pictures in 10 shards."""
    config = CorpusConfig(scenes=ScenesConfig(train_samples=48, val_samples=1, image_px=SIZE), shard_samples=5)
    return Corpus.open(shard_corpus(config, "train", str(tmp_path_factory.mktemp("corpus")), progress=False).url)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Windows of 3 shards or so; gives the names of the indexes that are read."""
    read, read_indexes = list[str](), pictures.read_indexes
    monkeypatch.setattr(pictures, "INDEX_ROWS", 15)
    monkeypatch.setattr(autoencoder, "CACHE_BYTES", 0)
    monkeypatch.setattr(
        pictures,
        "read_indexes",
        lambda url, shards, columns: (read.extend(shards), read_indexes(url, shards, columns))[1],
    )
    yield read


def test_pictures_in_windows_are_those_of_the_corpus(corpus: Corpus, small_windows: list[str]) -> None:
    images = CorpusImages(corpus, SIZE, cache_bytes=0)
    every = images.fetch(np.arange(len(images)))["images"]
    small_windows.clear()
    images = CorpusImages(corpus, SIZE, cache_bytes=0)
    assert images.windows is not None and images.weights is None
    order = sample_order(0, len(images), images.windows, images.weights)
    for start in range(0, len(images), 6):
        chosen = order.indices(range(start, start + 6))
        assert torch.equal(images.fetch(chosen)["images"], every[chosen])
    assert sorted(small_windows) == [shard.name for shard in corpus.shards]  # each once in the epoch


def test_what_fits_is_read_without_windows(corpus: Corpus) -> None:
    images = CorpusImages(corpus, SIZE)
    assert images.in_memory and images.windows is None


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:700])


@pytest.mark.parametrize(
    ("of_index", "fault", "told"),
    [
        (False, cut, "expected .* bytes at .* of .*, found"),
        (False, Path.unlink, "No such file"),
        (True, cut, "expected the index of .*; shard again"),
    ],
)
def test_a_shard_lost_in_mid_training_is_one_line_and_the_run_goes_on_after_it(
    of_index: bool, fault: Callable[[Path], object], told: str, corpus: Corpus, small_windows: list[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    straight = train_autoencoder(RECIPE, corpus.url, SIZE, str(tmp_path / "straight"), HERE)
    shard = corpus.shards[7]
    file = Path(index_url(corpus.url, shard.name) if of_index else shard.url)
    content = file.read_bytes()
    fetch, fetched = CorpusImages.fetch, list[int]()

    def struck(images: CorpusImages, indices: np.ndarray, *windows: None) -> dict[str, torch.Tensor]:
        fetched.append(len(indices))
        if len(fetched) == 5:
            fault(file)
        return fetch(images, indices, *windows)

    monkeypatch.setattr(CorpusImages, "fetch", struck)
    with pytest.raises(FlextokError, match=told) as error:
        train_autoencoder(RECIPE, corpus.url, SIZE, str(tmp_path / "run"), HERE)
    assert shard.name.removesuffix(".tar") in str(error.value) and "\n" not in str(error.value)
    file.write_bytes(content)
    fetched[:] = range(10)
    assert train_autoencoder(RECIPE, corpus.url, SIZE, str(tmp_path / "run"), HERE).digest == straight.digest
