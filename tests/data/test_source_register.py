"""A source format that the library does not have: registered here, sharded by worker processes, listed anew nightly."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from flextok.config import parse_config
from flextok.data.config import CorpusConfig, SourceConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus, iter_shard
from flextok.data.corpus.verify import verify_corpus
from flextok.data.sources.base import InputError, RawInput
from flextok.data.sources.catalog import check_sources, source_digest
from flextok.data.sources.listing import LISTING_SCHEMA, Listing
from flextok.data.sources.look import Look
from flextok.data.sources.registry import SOURCES, SourceFormat, all_formats
from flextok.data.sources.staging import Staging
from flextok.errors import UsageError


def as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@dataclass(frozen=True)
class ArrayReader:
    """Pictures of an array [N, H, W, 3] in a file of numpy's."""

    url: str
    remote: bool = False

    def read(self, name: str, size: int, where: str | None, max_bytes: int) -> RawInput:
        pixels = np.load(self.url, mmap_mode="r")[int(where or 0)]
        if not pixels.any():
            raise InputError("broken_image", "black")
        return RawInput(as_png(np.asarray(pixels)), label=int(where or 0) % 3, captions=(f"number {where}",))


class ArrayFormat(SourceFormat):
    name = "npy"

    def detects(self, look: Look) -> bool:
        return look.start.startswith(b"\x93NUMPY")

    def list(self, source: SourceConfig, split: str, config: CorpusConfig, staging: Staging) -> Listing:
        count = len(np.load(source.url, mmap_mode="r"))
        stamp = str(Path(source.url).stat().st_mtime_ns)
        rows = [(f"{i:04d}", f"picture_{i}", 0, stamp, str(i)) for i in range(count)]
        frame = pl.DataFrame(rows, schema=LISTING_SCHEMA, orient="row")
        return Listing(frame, ArrayReader(source.url), [], ["a", "b", "c"], has_splits=False)


@dataclass(frozen=True)
class GreyReader:
    remote: bool = False

    def read(self, name: str, size: int, where: str | None, max_bytes: int) -> RawInput:
        return RawInput(as_png(np.full((16, 16, 3), int(where or 0), np.uint8)))


class GreyFormat(SourceFormat):
    """No files at all: `greys:7` are seven of them."""

    name = "greys"
    needs_files = False

    def detects(self, look: Look) -> bool:
        return look.url.startswith("greys:")

    def list(self, source: SourceConfig, split: str, config: CorpusConfig, staging: Staging) -> Listing:
        rows = [(f"{i:04d}", f"grey_{i}", 0, "", str(i)) for i in range(int(source.url.partition(":")[2]))]
        return Listing(pl.DataFrame(rows, schema=LISTING_SCHEMA, orient="row"), GreyReader(), [], None, False)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for format in (ArrayFormat(), GreyFormat()):
        SOURCES.add(format.name, format)
    yield
    for name in ("npy", "greys"):
        SOURCES.remove(name)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    pictures = np.random.default_rng(0).integers(1, 256, (20, 24, 24, 3), dtype=np.uint8)
    pictures[7] = 0
    np.save(tmp_path / "pictures.npy", pictures)
    return tmp_path / "pictures.npy"


def config(source: object, **more: Any) -> CorpusConfig:
    return parse_config(
        CorpusConfig, {"source": str(source), "shard_samples": 6, "max_reject_fraction": 0.2, **more}, ""
    )


@pytest.mark.parametrize("named", ["auto", "npy"])
def test_a_format_of_the_tests_is_sharded_by_any_number_of_workers(arrays: Path, tmp_path: Path, named: str) -> None:
    made = [
        shard_corpus(config(arrays, format=named), "all", str(tmp_path / str(workers)), workers, progress=False)
        for workers in (1, 2)
    ]
    assert made[0].digest == made[1].digest
    assert (made[1].samples, made[1].reason_counts, made[1].classes) == (19, {"broken_image": 1}, ["a", "b", "c"])
    assert verify_corpus(made[1].url) == []
    corpus = Corpus.open(made[1].url)
    pictures = np.load(arrays)
    for sample in (sample for shard in corpus.shards for sample in iter_shard(corpus.url, shard)):
        number = int(sample.key.partition("_")[2])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample.image))), pictures[number])
        assert (sample.label, sample.text) == (number % 3, f"number {number}")


def test_its_splits_and_digest_follow_from_its_listing(arrays: Path, tmp_path: Path) -> None:
    parts = {
        split: shard_corpus(config(arrays, val_fraction=0.3), split, str(tmp_path / split), progress=False).inputs
        for split in ("train", "val", "all")
    }
    assert parts["train"] + parts["val"] == parts["all"] == 20 and parts["val"]
    before = source_digest(config(arrays), "all")
    assert source_digest(config(arrays), "all") == before
    np.save(arrays, np.load(arrays)[:9])
    assert source_digest(config(arrays), "all") != before


def test_a_format_without_files_needs_no_place(tmp_path: Path) -> None:
    check_sources(config("greys:7"))
    several = {"sources": [{"url": "greys:7"}, {"url": "greys:5", "name": "more"}]}
    made = shard_corpus(config("scenes", **several), "all", str(tmp_path / "out"), 2, progress=False)
    assert made.samples == 12
    assert source_digest(config("greys:7"), "all") != source_digest(config("greys:8"), "all")


def test_formats_are_asked_in_one_order_and_an_unknown_one_names_the_nearest() -> None:
    names = [format.name for format in all_formats()]
    assert set(names[:4]) == {"npy", "greys", "scenes", "drawn_words"}
    assert names[4:] == ["webdataset", "parquet", "captions", "folder", "imagenet"]
    with pytest.raises(
        UsageError, match=r"'format': expected a source format among .*, found 'npz'; the nearest is 'npy'"
    ):
        config("x", format="npz")
    with pytest.raises(UsageError, match=r"'sources.0.format'.*nearest is 'webdataset'"):
        config("x", sources=[{"url": "y", "format": "webdatset"}])
