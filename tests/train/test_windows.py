"""Training reads what is larger than memory through windows of blocks: each sample once an epoch, shuffled, in bounds."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flextok.data.blocks import Blocks
from flextok.data.tokens import (
    TokenMeta,
    TokenStore,
    token_schema,
    token_table,
    write_token_manifest,
    write_token_shard,
    writer,
)
from flextok.data.weights import PartWeights
from flextok.errors import FlextokError
from flextok.runtime.compute import ComputeConfig
from flextok.train import data
from flextok.train.captions import packed, unpacked
from flextok.train.config import PriorRecipe
from flextok.train.data import TokenRows
from flextok.train.parallel import DistContext
from flextok.train.prior import part_weights, train_prior
from flextok.train.sample_order import SampleOrder, WindowedOrder, Windows, sample_order

HERE = ComputeConfig(train_workers=0)
BLOCKS, BLOCK = 400, 50
SAMPLES = BLOCKS * BLOCK
WINDOW = 40 * BLOCK
EVEN = Windows(np.full(BLOCKS, BLOCK), WINDOW)
UNEVEN = Windows(np.array([7, 0, 120, 1, 33, 64, 5, 90, 90, 12]), 100)
SHARDS, GROUPS, GROUP = 4, 3, 5
IDS = 3
RECIPE = PriorRecipe.model_validate(
    {
        "model": {"width": 32, "depth": 1, "head_dim": 16, "condition": "text", "context_width": 64},
        "train": {"steps": 12, "batch_size": 8, "checkpoint_every": 2, "log_every": 6, "precision": "float32"},
    }
)


def epochs(order: WindowedOrder | SampleOrder, samples: int, count: int) -> list[np.ndarray]:
    return [order.indices(range(samples * epoch, samples * (epoch + 1))) for epoch in range(count)]


def caption(row: int) -> str | None:
    return None if row % 7 == 6 else f"scène {row} \N{RAINBOW}"


@pytest.fixture
def store_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store of 60 rows in 12 row groups of 4 shards, and windows that hold 3 groups of it."""
    meta = TokenMeta(tokenizer="ab" * 32, vocab_size=7, num_tokens=IDS)
    monkeypatch.setattr(writer, "ROW_GROUP_ROWS", GROUP)
    monkeypatch.setattr(data, "WINDOW_BYTES", 3 * GROUP * (IDS * 2 + data.ROW_BYTES + data.CAPTION_BYTES))
    folder, schema, records = tmp_path / "tokens", token_schema(meta), []
    for shard in range(SHARDS):
        rows = range(shard * GROUPS * GROUP, (shard + 1) * GROUPS * GROUP)
        ids = np.array([[row % 7, row // 7 % 7, row // 49] for row in rows])
        columns = {"key": [f"k{row}" for row in rows], "text": [caption(row) for row in rows]}
        table = token_table(schema, ids, {**columns, "label": [row % 5 for row in rows]})
        records.append(write_token_shard(str(folder / f"{shard:06d}.parquet"), schema, [table]))
    write_token_manifest(str(folder), "tokens", records, meta, [], {})
    yield str(folder)


# The order


@pytest.mark.parametrize("windows", [EVEN, UNEVEN])
def test_each_epoch_has_every_sample_once_in_another_order(windows: Windows) -> None:
    samples = int(windows.blocks.sum())
    order = WindowedOrder(3, windows)
    found = epochs(order, samples, 3)
    for epoch in found:
        assert np.array_equal(np.sort(epoch), np.arange(samples))
    assert (found[0] != found[1]).any() and (found[1] != found[2]).any()
    assert (found[0] != epochs(WindowedOrder(4, windows), samples, 1)[0]).any()


@pytest.mark.parametrize("weights", [None, PartWeights([1.0, 2.5], np.arange(SAMPLES, dtype=np.uint8) % 2)])
def test_the_sample_at_a_place_does_not_depend_on_who_asks_or_from_where(weights: PartWeights | None) -> None:
    """Any number of workers, and a run that begins in the middle: across windows and epochs."""
    whole = WindowedOrder(3, EVEN, weights).indices(range(3 * SAMPLES))
    batch = 512
    for workers in (1, 3):
        orders = [WindowedOrder(3, EVEN, weights) for _ in range(workers)]
        for step in (2, 3, 39, 77, 116):
            parts = [DistContext(rank=rank, size=workers).part(batch) for rank in range(workers)]
            places = [range(step * batch + part.start, min(step * batch + part.stop, len(whole))) for part in parts]
            found = np.concatenate([order.indices(place) for order, place in zip(orders, places, strict=True)])
            assert np.array_equal(found, whole[step * batch : step * batch + batch])


def test_neighbours_come_from_different_blocks_and_far_apart() -> None:
    """As stated in `WindowedOrder`: measured over 5 epochs beside what is expected, and beside a permutation of all."""
    places = np.arange(SAMPLES)

    def measured(order: WindowedOrder | SampleOrder) -> tuple[float, float, float]:
        found = epochs(order, SAMPLES, 5)
        same = [(np.diff(epoch // BLOCK) == 0).mean() for epoch in found]
        apart = [np.abs(np.diff(epoch)).mean() / SAMPLES for epoch in found]
        rank_correlation = [np.corrcoef(epoch, places)[0, 1] for epoch in found]
        return float(np.mean(same)), float(np.mean(apart)), float(np.abs(rank_correlation).max())

    same, apart, correlation = measured(WindowedOrder(0, EVEN))
    blocks = WINDOW // BLOCK
    assert same == pytest.approx((BLOCK - 1) / (WINDOW - 1), rel=0.1)  # 1 of 40
    assert apart == pytest.approx((1 - 1 / blocks) / 3, rel=0.05)
    # Blocks lie in a random order: 4 standard deviations of a correlation of so many.
    assert correlation < 4 / np.sqrt(BLOCKS)
    same, apart, _ = measured(SampleOrder(0, SAMPLES))
    assert same == pytest.approx(1 / BLOCKS, rel=0.2) and apart == pytest.approx(1 / 3, rel=0.05)


def test_a_sample_may_stand_anywhere_in_an_epoch() -> None:
    """Places of one sample of a small order over many epochs, in five bins: chi-square with 4 degrees of freedom."""
    windows = Windows(np.full(10, 2), 4)
    found = np.stack(epochs(WindowedOrder(1, windows), 20, 1500))
    for sample in (0, 7, 19):
        counts = np.bincount(np.nonzero(found == sample)[1] // 4, minlength=5)
        assert ((counts - 300) ** 2 / 300).sum() < 18.5  # p = 0.001


def test_weights_say_how_often_a_sample_is_drawn_in_windows_too() -> None:
    parts = (np.arange(SAMPLES) // 3 % 3).astype(np.uint8)
    weights = PartWeights([0.3, 1.0, 2.6], parts)
    assert weights[:].mean() == pytest.approx(1)
    found = epochs(WindowedOrder(0, EVEN, weights), SAMPLES, 10)
    expected = weights[:]
    for epoch in found:
        counts = np.bincount(epoch, minlength=SAMPLES)
        assert counts.sum() == SAMPLES
        assert ((counts == np.floor(expected)) | (counts == np.ceil(expected))).all()
    mean = np.mean([np.bincount(epoch, minlength=SAMPLES) for epoch in found], axis=0)
    for part in range(3):
        # A standard deviation of 0.5 / sqrt(10 * 6667) at most.
        assert mean[parts == part].mean() == pytest.approx(expected[parts == part].mean(), abs=0.008)


def test_what_fits_is_permuted_as_a_whole_as_before() -> None:
    wanted = np.concatenate([np.random.default_rng((7, epoch)).permutation(20) for epoch in range(3)])
    assert sample_order(7, 20, None, None).indices(range(60)).tolist() == wanted.tolist()


# Rows of a token store


def test_rows_read_in_windows_are_those_of_the_store_each_group_read_once_an_epoch(store_url: str) -> None:
    store = TokenStore.open(store_url)
    read: list[tuple[int, int]] = []
    read_row_group = store.read_row_group
    store.read_row_group = lambda shard, group, *columns: (
        read.append((shard, group)),
        read_row_group(shard, group, *columns),
    )[1]
    rows = TokenRows(store, with_texts=True)
    assert rows.windows is not None and not rows.in_memory
    order = sample_order(0, len(rows), rows.windows, rows.weights)
    ids, labels, texts = store.ids(), store.labels(), store.texts()
    for start in range(0, 2 * len(store), 8):
        chosen = order.indices(range(start, min(start + 8, 2 * len(store))))
        batch = rows.fetch(chosen)
        assert np.array_equal(batch["ids"], ids[chosen]) and np.array_equal(batch["labels"], labels[chosen])
        assert unpacked(batch["texts"]) == [texts[row] or "" for row in chosen]
    # A few of the first epoch's last groups may be there yet when the second begins.
    assert SHARDS * GROUPS < len(read) <= 2 * SHARDS * GROUPS
    assert len(set(read[: SHARDS * GROUPS])) == SHARDS * GROUPS


def test_no_more_blocks_are_kept_than_there_is_room_for() -> None:
    blocks = Blocks([5] * 30, lambda number: np.arange(5 * number, 5 * number + 5), most_rows=20)
    rng = np.random.default_rng(0)
    for _ in range(50):
        indices = rng.integers(len(blocks), size=9)
        found = np.full(9, -1)
        for places, block, rows in blocks.parts(indices):
            found[places] = block[rows]
        assert np.array_equal(found, indices)
        assert len(blocks._kept) <= 5


def test_captions_in_a_batch_are_those_that_were_put_in() -> None:
    texts = ["", "plain", "naïve \N{RAINBOW}", "שלום", "ends in \0", "a" * 10_000]
    assert unpacked(packed(texts)) == texts
    assert unpacked(packed([None, "b"])) == ["", "b"] and unpacked(packed([None])) == [""]


def test_stores_of_unequal_weights_keep_a_byte_a_row(store_url: str) -> None:
    store = TokenStore.open(store_url)
    weights = part_weights([1.0, 3.0], [store, store])
    assert weights is not None and weights[:].tolist() == [0.5] * 60 + [1.5] * 60
    assert weights._parts_N.nbytes == 120
    assert part_weights([2.0, 2.0], [store, store]) is None


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-200]), "found damage .*; tokenize it again"),
        (Path.unlink, "found nothing; run `flextok tokenize` again"),
    ],
)
def test_a_shard_lost_in_mid_training_is_one_line_and_the_run_goes_on_after_it(
    fault: Callable[[Path], object], told: str, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_prior(RECIPE, store_url, None, str(tmp_path / "straight"), HERE)
    file = Path(store_url) / "000002.parquet"
    shutil.copy(file, tmp_path / "kept")
    fetch, fetched = TokenRows.fetch, []

    def struck(rows: TokenRows, indices: np.ndarray) -> dict[str, torch.Tensor]:
        fetched.append(indices)
        if len(fetched) == 7:
            fault(file)
        return fetch(rows, indices)

    with monkeypatch.context() as patch:
        patch.setattr(TokenRows, "fetch", struck)
        with pytest.raises(FlextokError, match=told) as error:
            train_prior(RECIPE, store_url, None, str(tmp_path / "run"), HERE)
    assert "000002.parquet" in str(error.value) and "\n" not in str(error.value)
    shutil.copy(tmp_path / "kept", file)
    fetched.clear()
    monkeypatch.setattr(TokenRows, "fetch", lambda rows, indices: (fetched.append(indices), fetch(rows, indices))[1])
    resumed = train_prior(RECIPE, store_url, None, str(tmp_path / "run"), HERE)
    assert resumed.digest == straight.digest and 0 < len(fetched) < 12


def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    """Windows of 8 MiB of stores of 16 and 256 MiB of ids, the larger after the smaller in one process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "WINDOW_BYTES": str(8 << 20),
        "TEXTS": "1",
    }
    script = Path(__file__).with_name("memory_process.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path), "64", "4096", "4", "32", "512"],
                          env=environment, text=True, stdout=subprocess.PIPE, check=True)  # fmt: skip
    _, (small, first), (large, second) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert large == 16 * small == 512 * 4096
    assert second - first < 32  # of 240 MiB more; the allocator keeps up to 18
