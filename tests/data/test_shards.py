"""What a corpus promises: the same digest however it was made, nothing lost, and nothing half done."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flextok.data.config import CorpusConfig
from flextok.data.corpus.crops import read_at
from flextok.data.corpus.job import CorpusSummary, shard_corpus
from flextok.data.corpus.reader import Corpus, iter_shard
from flextok.data.corpus.verify import verify_corpus
from flextok.errors import FlextokError, IntegrityError, UsageError
from flextok.runtime.lock import locked

SCRIPT = Path(__file__).with_name("shard_process.py")


def shard(source: Path | str, dest: Path, workers: int = 1, **options: Any) -> CorpusSummary:
    config = CorpusConfig.model_validate({"source": str(source), **options})
    return shard_corpus(config, "all", str(dest), workers, progress=False)


def files(dest: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every shard: both change when it is written anew."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted((dest / "shards").iterdir())}


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_worker_counts_and_places_do_not_change_the_corpus(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder([f"{'cat' if i % 3 else 'dog'}/{i}.jpg" for i in range(40)])
    (source / "cat/bad.jpg").write_text("no")
    shutil.copytree(source, tmp_path / "elsewhere", copy_function=shutil.copyfile)  # with times of its own
    summaries = [
        shard(source, tmp_path / "1", 1, shard_samples=6),
        shard(source, tmp_path / "2", 2, shard_samples=6),
        shard(tmp_path / "elsewhere", tmp_path / "7", 7, shard_samples=6),
    ]
    assert len({summary.digest for summary in summaries}) == 1
    assert (summaries[0].samples, summaries[0].rejects, summaries[0].inputs) == (40, 1, 41)
    tars = [{path.name: path.read_bytes() for path in (tmp_path / n / "shards").iterdir()} for n in "127"]
    assert tars[0] == tars[1] == tars[2]
    assert shard(source, tmp_path / "seed", seed=1, shard_samples=6).digest != summaries[0].digest


def test_shards_are_mixed_even_and_within_their_bounds(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder([f"{'abcd'[i // 50]}/{i}.jpg" for i in range(200)])
    summary = shard(source, tmp_path / "out", shard_samples=60)
    corpus = Corpus.open(str(tmp_path / "out"))
    assert [entry.samples for entry in corpus.shards] == [50] * 4 and summary.shards == 4
    for _, rows in corpus.index().group_by("shard"):
        counts = Counter(rows["label"].to_list())
        assert all(5 <= counts[label] <= 22 for label in range(4)), counts  # 12.5 expected, 3 sigma either side
    small = shard(source, tmp_path / "bytes", shard_bytes=20_000)
    entries = Corpus.open(str(tmp_path / "bytes")).shards
    assert small.samples == 200 and len(entries) > 4
    index = Corpus.open(str(tmp_path / "bytes")).index()
    assert index.group_by("shard").agg(pl.col("size").sum())["size"].max() <= 20_000  # pyright: ignore[reportOperatorIssue]


def test_index_finds_every_picture_in_its_tar(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    shard(make_folder([f"{i}.jpg" for i in range(9)]), tmp_path / "out", shard_samples=5)
    corpus = Corpus.open(str(tmp_path / "out/shards"))
    streamed = {sample.key: sample.image for entry in corpus.shards for sample in iter_shard(corpus.url, entry)}
    urls = {entry.name: entry.url for entry in corpus.shards}
    for row in corpus.index().to_dicts():
        assert read_at(urls[row["shard"]], row["offset"], row["size"]) == streamed[row["key"]]
    assert corpus.num_samples == 9 == corpus.index()["key"].n_unique()


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on(make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for i in range(120):
        (source / f"{i:03d}.jpg").write_bytes(make_picture(i, 400))
    wanted = shard(source, tmp_path / "whole", shard_samples=8).digest
    chance = random.Random(0)
    for round in range(3):
        dest = tmp_path / f"killed{round}"
        process = start(source, dest, 2)
        goal = chance.randrange(0, 14)
        while process.poll() is None and len(list((dest / "index").glob("[0-9]*"))) < goal:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (dest / "manifest.json").exists() or goal > 11
        finished = {path.stem for path in (dest / "index").glob("[0-9]*")} if (dest / "index").exists() else set()
        before = files(dest) if finished else {}
        assert shard(source, dest, shard_samples=8).digest == wanted
        after = files(dest)
        assert all(after[f"{name}.tar"] == before[f"{name}.tar"] for name in finished if f"{name}.tar" in before)
        assert not list(dest.rglob(".tmp-*")) and not (dest / ".lock").exists()


def test_two_runs_to_one_place(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["1.jpg"])
    with locked(str(tmp_path / "out")):
        process = start(source, tmp_path / "out", 1)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "another run is writing" in errors
    assert shard(source, tmp_path / "out").samples == 1


def test_added_inputs_make_new_shards_only(
    make_folder: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_folder([f"{i}.jpg" for i in range(20)])
    first = shard(source, tmp_path / "out", shard_samples=10)
    before = files(tmp_path / "out")
    assert shard(source, tmp_path / "out", shard_samples=10) == first
    assert files(tmp_path / "out") == before

    make_folder([f"new{i}.jpg" for i in range(5)], first=20)
    (source / "3.jpg").unlink()
    second = shard(source, tmp_path / "out", shard_samples=10)
    after = files(tmp_path / "out")
    assert {name: after[name] for name in before} == before and len(after) == 3
    assert (second.added, second.removed, second.samples) == (5, 1, 25)
    assert "1 inputs are gone from the source" in caplog.text
    assert second.digest != first.digest

    (source / "new1.jpg").write_bytes((source / "7.jpg").read_bytes() + b"changed")
    shard(source, tmp_path / "out", shard_samples=10)
    changed = files(tmp_path / "out")
    assert [name for name in changed if changed[name] != after[name]] == ["000002.tar"]


def test_a_file_replaced_by_one_of_equal_size_is_read_again(
    make_folder: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    source = make_folder([f"{i}.jpg" for i in range(20)])
    for name in ("7.jpg", "linked.jpg"):
        (source / name).unlink(missing_ok=True)
        (source / name).symlink_to(tmp_path / f"behind-{name}")
        (tmp_path / f"behind-{name}").write_bytes(make_picture(50, format="BMP"))
    first = shard(source, tmp_path / "out", shard_samples=6)
    before = files(tmp_path / "out")
    index = Corpus.open(str(tmp_path / "out")).index()
    holding = {row["source"]: f"{row['shard']}.tar" for row in index.to_dicts()}

    replaced = tmp_path / "behind-7.jpg"
    replaced.write_bytes(make_picture(51, format="BMP"))  # as large as the one before, as all BMP of one shape are
    second = shard(source, tmp_path / "out", shard_samples=6)
    after = files(tmp_path / "out")
    assert [name for name in after if after[name] != before[name]] == [holding["7.jpg"]]
    assert second.digest != first.digest
    assert second.digest == shard(source, tmp_path / "anew", shard_samples=6).digest

    os.utime(source / "3.jpg", (0, 0))
    assert shard(source, tmp_path / "out", shard_samples=6).digest == second.digest
    touched = files(tmp_path / "out")
    assert [name for name in touched if touched[name] != after[name]] == [holding["3.jpg"]]


def test_a_tar_replaced_by_one_of_equal_size_is_read_again(
    make_tar: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    members = [(f"{i}.bmp", make_picture(i, format="BMP")) for i in range(4)]
    tar = make_tar(tmp_path / "one.tar", members)
    first = shard(tar, tmp_path / "out")
    os.utime(tar, (0, 0))
    assert shard(tar, tmp_path / "out").digest == first.digest
    make_tar(tar, [*members[:3], ("3.bmp", make_picture(9, format="BMP"))])
    second = shard(tar, tmp_path / "out").digest
    assert second != first.digest and second == shard(tar, tmp_path / "anew").digest


def test_an_interrupted_addition_ends_as_an_undisturbed_one(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder([f"{i}.jpg" for i in range(20)])
    for place in ("a", "b"):
        shard(source, tmp_path / place, shard_samples=10)
    make_folder([f"new{i}.jpg" for i in range(25)], first=20)
    wanted = shard(source, tmp_path / "a", shard_samples=10).digest
    shard(source, tmp_path / "b", shard_samples=10)
    for name in ("shards/000003.tar", "index/000004.parquet", "manifest.json"):  # as a kill leaves it
        (tmp_path / "b" / name).unlink()
    assert shard(source, tmp_path / "b", shard_samples=10).digest == wanted


def test_other_settings_make_the_corpus_anew_and_another_corpus_is_refused(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_folder([f"{i}.jpg" for i in range(12)])
    shard(source, tmp_path / "out", shard_samples=3)
    anew = shard(source, tmp_path / "out", shard_samples=6)
    assert anew.digest == shard(source, tmp_path / "fresh", shard_samples=6).digest
    assert len(files(tmp_path / "out")) == 2
    with pytest.raises(UsageError, match=r"found \('corpus'"):
        shard(source, tmp_path / "out", name="other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=r"expected an empty destination, found thesis\.tex"):
        shard(source, tmp_path / "mine")
    with pytest.raises(UsageError, match="outside the source"):
        shard(source, source / "shards")


def test_too_many_rejects_end_the_run_after_telling_why(
    make_folder: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_folder([f"{i}.jpg" for i in range(8)])
    (source / "bad.jpg").write_text("no")
    (source / "README.md").write_text("no picture, and not counted as one")
    caplog.set_level("INFO")
    with pytest.raises(FlextokError, match=r"at most 5\.0% rejects, found 1 of 9") as caught:
        shard(source, tmp_path / "out")
    assert caught.value.exit_code == 1
    assert "1 x not_an_image" in caplog.text and "bad.jpg" in caplog.text
    assert pl.read_parquet(tmp_path / "out/rejects.parquet").height == 2
    assert not (tmp_path / "out/manifest.json").exists()
    before = files(tmp_path / "out")
    assert shard(source, tmp_path / "out", max_reject_fraction=0.2).rejects == 2
    assert files(tmp_path / "out") == before


def test_equal_pictures_are_counted_or_dropped(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder([f"{i}.jpg" for i in range(12)])
    for i in range(4):
        shutil.copy(source / f"{i}.jpg", source / f"copy{i}.jpg")
    kept = shard(source, tmp_path / "keep", shard_samples=4)
    assert (kept.samples, kept.duplicates, kept.rejects) == (16, 4, 0)
    dropped = shard(source, tmp_path / "drop", shard_samples=4, duplicates="drop")
    assert (dropped.samples, dropped.duplicates, dropped.reason_counts) == (12, 0, {"duplicate": 4})
    corpus = Corpus.open(str(tmp_path / "drop"))
    assert corpus.index()["sha256"].n_unique() == 12
    assert sum(1 for entry in corpus.shards for _ in iter_shard(corpus.url, entry)) == 12
    before = files(tmp_path / "drop")
    assert shard(source, tmp_path / "drop", 2, shard_samples=4, duplicates="drop").digest == dropped.digest
    assert files(tmp_path / "drop") == before


def test_near_duplicates_are_reported(shared: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("dup_a.jpg", "dup_b.jpg", "dup_c_reencoded.jpg", "photo.webp", "gray.jpg"):
        shutil.copy(shared / "data/hostile/images" / name, source / name)
    summary = shard(source, tmp_path / "out", near_duplicates=True)
    pairs = pl.read_parquet(tmp_path / "out/near_duplicates.parquet")
    assert (summary.samples, summary.duplicates, summary.near_duplicates) == (5, 1, 1)
    assert "dup_c_reencoded.jpg" in pairs.row(0)


def test_near_pairs_are_all_pairs() -> None:
    from flextok.data.corpus.duplicates import NEAR_BITS, _near_pairs

    random_state = np.random.default_rng(0)
    hashes = random_state.integers(0, 2**64, 60, dtype=np.uint64)
    flips = np.array([sum(1 << int(b) for b in random_state.choice(64, k, replace=False)) for k in range(8)], np.uint64)
    hashes = np.unique(np.concatenate([hashes, hashes[:8] ^ flips, hashes[8:16] ^ flips]))
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    slow = [(a, b) for a, b in zip(*np.nonzero(distance <= NEAR_BITS), strict=True) if a < b]
    assert sorted(map(tuple, _near_pairs(hashes).tolist())) == sorted(slow)


def test_resizing_reencodes_only_larger_pictures(make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, size, format in (("big.jpg", 200, "JPEG"), ("big.png", 200, "PNG"), ("small.jpg", 40, "JPEG")):
        (source / name).write_bytes(make_picture(size, size, format))
    shard(source, tmp_path / "out", resize_short_side=64)
    corpus = Corpus.open(str(tmp_path / "out"))
    found = {sample.meta["source"]: sample for sample in iter_shard(corpus.url, "000000")}
    assert {name: (s.ext, s.meta["width"], "source_sha256" in s.meta) for name, s in found.items()} == {
        "big.jpg": ("jpg", 64, True), "big.png": ("png", 64, True), "small.jpg": ("jpg", 40, False),
    }  # fmt: skip


def test_a_run_goes_on_when_a_full_disk_has_room_again(
    make_folder: Callable[..., Path], small_disk: tuple[Path, Callable[[str], None]], tmp_path: Path
) -> None:
    disk, resize = small_disk
    source = make_folder([f"{i}.jpg" for i in range(40)])
    with pytest.raises(FlextokError, match="No space left on device; free some room") as failure:
        shard(source, disk, shard_samples=4)
    assert "\n" not in str(failure.value)
    kept = {path.name: path.stat().st_ino for path in (disk / "shards").glob("*.tar")}
    assert kept
    assert not list(disk.rglob(".tmp-*"))
    resize("4m")
    found = shard(source, disk, shard_samples=4)
    assert found.digest == shard(source, tmp_path / "elsewhere", shard_samples=4).digest
    assert {name: (disk / "shards" / name).stat().st_ino for name in kept} == kept


def test_a_full_or_forbidden_disk_is_one_clear_line(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder([f"{i}.jpg" for i in range(20)])
    process = start(source, tmp_path / "out", 1, 6000)  # no file may grow beyond 6,000 bytes
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "could not write" in errors and "run the same command again" in errors and "Traceback" not in errors
    assert shard(source, tmp_path / "out", shard_samples=8).samples == 20
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="expected a folder"):
        shard(source, tmp_path / "file/out")


def test_a_shard_that_lost_samples_is_not_read_quietly(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    shard(make_folder([f"{i}.jpg" for i in range(3)]), tmp_path / "out")
    tar = tmp_path / "out/shards/000000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2 // 512 * 512])
    corpus = Corpus.open(str(tmp_path / "out"))
    with pytest.raises(IntegrityError):
        list(iter_shard(corpus.url, corpus.shards[0]))
    with pytest.raises(IntegrityError, match="expected 10 bytes"):
        read_at(corpus.shards[0].url, 10**6, 10)


def test_a_corpus_in_a_folder_called_shards_is_found(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["a.jpg", "b.jpg"])
    made = shard_corpus(CorpusConfig(source=str(source)), "all", f"{tmp_path}/shards", progress=False)
    for url in (f"{tmp_path}/shards", f"{tmp_path}/shards/", f"{tmp_path}/shards/shards"):
        assert Corpus.open(url).digest == made.digest
        assert verify_corpus(url) == []
