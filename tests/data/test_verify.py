"""`verify_corpus` finds what happened to a corpus after it was finished."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.verify import verify_corpus


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


@pytest.fixture
def corpora(make_folder: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    for place, first in (("one", 0), ("two", 50)):
        source = make_folder([f"{i}.jpg" for i in range(12)], f"source_{place}", first)
        (source / "notes.txt").write_text("x")
        config = CorpusConfig.model_validate({"source": str(source), "shard_samples": 5})
        shard_corpus(config, "all", str(tmp_path / place), progress=False)
    return tmp_path / "one", tmp_path / "two"


def test_an_untouched_corpus_holds(corpora: tuple[Path, Path]) -> None:
    assert verify_corpus(str(corpora[0])) == []
    assert verify_corpus(str(corpora[0] / "shards")) == []


def damage_shard(one: Path, two: Path) -> None:
    flip(one / "shards/000001.tar", 0.5)


def remove_shard(one: Path, two: Path) -> None:
    (one / "shards/000002.tar").unlink()


def truncate_shard(one: Path, two: Path) -> None:
    tar = one / "shards/000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1024])


def swap_shard(one: Path, two: Path) -> None:
    shutil.copy(two / "shards/000000.tar", one / "shards/000000.tar")


def add_file(one: Path, two: Path) -> None:
    (one / "shards/000009.tar").write_bytes(b"")


def leave_temporary(one: Path, two: Path) -> None:
    (one / "shards/.tmp-1").write_bytes(b"")


def other_table(one: Path, two: Path) -> None:
    shutil.copy(two / "manifest.parquet", one / "manifest.parquet")


def other_manifest(one: Path, two: Path) -> None:
    shutil.copy(two / "manifest.json", one / "manifest.json")


def damage_index(one: Path, two: Path) -> None:
    flip(one / "index/000000.parquet", 0.3)


def damage_rejects(one: Path, two: Path) -> None:
    flip(one / "rejects.parquet", 0.3)


def edit_manifest(one: Path, two: Path) -> None:
    path = one / "manifest.json"
    path.write_text(path.read_text().replace('"split": "all"', '"split": "val"', 1))


def remove_manifest(one: Path, two: Path) -> None:
    (one / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_shard, "shards/000001.tar: changed"),
        (remove_shard, "shards/000002.tar: missing"),
        (truncate_shard, "shards/000000.tar: truncated"),
        (swap_shard, "shards/000000.tar:"),
        (add_file, "shards/000009.tar: extra file"),
        (leave_temporary, "shards/.tmp-1: extra file"),
        (other_table, "manifest.parquet: belongs to another corpus"),
        (other_manifest, "manifest.parquet: belongs to another corpus"),
        (damage_index, "index/000000.parquet: changed"),
        (damage_rejects, "rejects.parquet: changed"),
        (edit_manifest, "manifest.json: changed"),
        (remove_manifest, "manifest.json: missing"),
    ],
)
def test_damage_is_named(corpora: tuple[Path, Path], damage: Callable[[Path, Path], None], said: str) -> None:
    damage(*corpora)
    problems = verify_corpus(str(corpora[0]))
    assert any(problem.startswith(said) for problem in problems), problems
