"""Inputs as people have them, from the files to the printed sum: views, dots, texts beside pictures, lists, tables."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flextok.data.config import CorpusConfig, SourceConfig
from flextok.data.corpus.job import CorpusSummary, shard_corpus
from flextok.data.corpus.reader import Corpus, Sample, iter_shard
from flextok.data.corpus.verify import verify_corpus
from flextok.data.sources.catalog import format_of, source_digest
from flextok.errors import FlextokError, UsageError

Members = list[tuple[str, bytes]]
TRACK = "2 Track 2.2 (Clean Version)"


def shard(source: Path, dest: Path, split: str = "all", workers: int = 1, **options: Any) -> CorpusSummary:
    config = CorpusConfig.model_validate({"source": str(source), "max_reject_fraction": 1.0, **options})
    summary = shard_corpus(config, split, str(dest), workers, progress=False)
    assert summary.samples + summary.rejects == summary.inputs == summary.members - summary.fields
    assert verify_corpus(str(dest)) == []
    return summary


def samples(dest: Path) -> dict[str, Sample]:
    corpus = Corpus.open(str(dest))
    return {s.meta["source"]: s for name in corpus.shards for s in iter_shard(corpus.url, name)}


def rejects(dest: Path) -> dict[str, str]:
    frame = pl.read_parquet(dest / "rejects.parquet")
    return dict(zip(frame["source"], frame["reason"], strict=True))


def write_folder(folder: Path, members: Members) -> Path:
    for name, content in members:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


# Views and dots


@pytest.fixture
def members(make_picture: Callable[..., bytes]) -> Members:
    """A sample with two views, one with dots in its name, and three that differ behind their first dot."""
    return [
        ("foo0.left.jpg", make_picture(0)), ("foo0.right.jpg", make_picture(1)), ("foo0.txt", b"two sides"),
        ("foo0.cls", b"3"), ("foo0.json", b'{"camera": 7}'),
        (f"{TRACK}.jpg", make_picture(2)), (f"{TRACK}.json", b'{"bpm": 120}'), (f"{TRACK}.txt", b"a cover"),
        *((f"scan.{i}.jpg", make_picture(3 + i)) for i in range(3)), *((f"scan.{i}.txt", b"page %d" % i) for i in range(3)),
    ]  # fmt: skip


def check_members(found: dict[str, Sample], prefix: str) -> None:
    """The samples that `members` make, in a tar or a folder."""
    left, right = found[f"{prefix}foo0.left.jpg"], found[f"{prefix}foo0.right.jpg"]
    assert [(side.label, side.text, side.meta["metadata"]) for side in (left, right)] == [
        (3, "two sides", {"camera": 7})
    ] * 2
    assert (left.meta["view"], right.meta["view"]) == ("left", "right")
    assert "left" in left.key and "right" in right.key
    assert {found[f"{prefix}scan.{i}.jpg"].text for i in range(3)} == {"page 0", "page 1", "page 2"}
    (track,) = (sample for name, sample in found.items() if "Track" in name)
    assert (track.text, track.meta["metadata"]) == ("a cover", {"bpm": 120})
    assert len(found) == 6


def test_views_and_dots_in_a_tar(members: Members, make_tar: Callable[..., Path], tmp_path: Path) -> None:
    made = shard(make_tar(tmp_path / "s/a.tar", members).parent, tmp_path / "out")
    assert (made.members, made.samples, made.fields, made.rejects) == (14, 6, 8, 0)
    found = samples(tmp_path / "out")
    check_members(found, "a.tar/")
    assert {sample.key for sample in found.values()} == {
        "foo0_left", "foo0_right", "scan_0", "scan_1", "scan_2", "2_Track_2-99ffbef781",
    }  # fmt: skip


def test_views_and_dots_in_a_folder(members: Members, tmp_path: Path) -> None:
    made = shard(write_folder(tmp_path / "s", members), tmp_path / "out")
    assert (made.members, made.samples, made.fields, made.rejects) == (14, 6, 8, 0)
    check_members(samples(tmp_path / "out"), "")


def test_neither_order_nor_workers_change_the_corpus(
    members: Members, make_tar: Callable[..., Path], tmp_path: Path
) -> None:
    orders = {"a": members, "b": members[::-1], "c": [*members[1::2], *members[::2]]}
    made = {
        name: shard(make_tar(tmp_path / f"{name}/x.tar", order), tmp_path / f"{name}/out", workers=1 + (name == "c"),
                    shard_samples=2)
        for name, order in orders.items()
    }  # fmt: skip
    assert len({summary.digest for summary in made.values()}) == 1


def test_views_are_never_divided_between_train_and_val(
    make_tar: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    members = [
        (f"{i}.{side}.jpg", make_picture(2 * i + k)) for i in range(30) for k, side in enumerate(("left", "right"))
    ] + [(f"{i}.txt", b"text %d" % i) for i in range(30)]
    tar, folder = make_tar(tmp_path / "a.tar", members), write_folder(tmp_path / "folder", members)
    for source in (tar, folder):
        stems: dict[str, set[str]] = {}
        for split in ("train", "val"):
            made = shard(source, tmp_path / f"{source.stem}_out" / split, split, val_fraction=0.4)
            stems[split] = {sample.text or "" for sample in samples(tmp_path / f"{source.stem}_out" / split).values()}
            assert made.samples == 2 * len(stems[split]) == 2 * made.fields > 0
        assert not stems["train"] & stems["val"] and len(stems["train"] | stems["val"]) == 30


def test_keys_of_single_pictures_are_their_stems(
    make_tar: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    members = [("a.JPG", make_picture(0)), ("a.TXT", b"x"), ("d/b.input.png", make_picture(1, format="PNG")),
               ("d/b.json", b"{}"), ("e f.jpg", make_picture(2)), ("e f.npy", b"0")]  # fmt: skip
    made = shard(make_tar(tmp_path / "a.tar", members), tmp_path / "out")
    found = samples(tmp_path / "out")
    assert {name: sample.key for name, sample in found.items()} == {
        "a.tar/a.jpg": "a", "a.tar/d/b.input.png": "d_b", "a.tar/e f.jpg": "e_f-021023585f",
    }  # fmt: skip
    assert found["a.tar/a.jpg"].text == "x" and all("view" not in sample.meta for sample in found.values())
    assert rejects(tmp_path / "out") == {"a.tar/e f.npy": "unused_field"}
    assert (made.members, made.fields) == (6, 2)


def test_a_text_that_changes_makes_its_picture_anew(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder([f"{i}.jpg" for i in range(6)])
    (source / "3.txt").write_text("one")
    first = shard(source, tmp_path / "out", shard_samples=2)
    before = source_digest(CorpusConfig.model_validate({"source": str(source)}), "all")
    (source / "3.txt").write_text("two")
    os.utime(source / "3.txt", (1, 1))
    assert source_digest(CorpusConfig.model_validate({"source": str(source)}), "all") != before
    second = shard(source, tmp_path / "out", shard_samples=2)
    assert samples(tmp_path / "out")["3.jpg"].text == "two"
    assert second.digest != first.digest and second.digest == shard(source, tmp_path / "anew", shard_samples=2).digest


def test_a_text_whose_picture_comes_later(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder([f"{i}.jpg" for i in range(8)])
    (source / "late.txt").write_text("at last")
    first = shard(source, tmp_path / "out", shard_samples=3)
    assert first.reason_counts == {"other_file": 1} and (first.members, first.fields) == (9, 0)
    make_folder(["late.jpg"], first=8)
    second = shard(source, tmp_path / "out", shard_samples=3)
    assert samples(tmp_path / "out")["late.jpg"].text == "at last"
    assert (second.members, second.samples, second.fields, second.rejects) == (10, 9, 1, 0)
    assert (second.added, second.removed) == (1, 0)


def test_texts_that_cannot_be_used_reject_their_picture(
    make_folder: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    source = make_folder(["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    (source / "a.json").write_text("[1]")
    (source / "b.txt").write_bytes(b"\xff")
    (source / "c.json").write_text('{"big": "' + "x" * (1 << 20) + '"}')
    (source / "notes.txt").write_text("of nobody")
    made = shard(source, tmp_path / "out")
    assert rejects(tmp_path / "out") == {
        "a.jpg": "bad_metadata", "b.jpg": "bad_metadata", "c.jpg": "bad_metadata", "notes.txt": "other_file",
    }  # fmt: skip
    assert (made.members, made.samples, made.fields) == (8, 1, 3)


# img2dataset's files


def test_img2dataset_files_with_their_records(make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    members: Members = []
    for folder in range(2):
        for i in range(3):
            key = f"{folder:05d}{i:04d}"
            meta = {"url": f"https://example.org/{key}", "key": key, "caption": f"nr {key}", "status": "success"}
            members += [(f"{folder:05d}/{key}.jpg", make_picture(3 * folder + i)), (f"{folder:05d}/{key}.txt", f"nr {key}".encode()),
                        (f"{folder:05d}/{key}.json", json.dumps(meta).encode())]  # fmt: skip
        members.append((f"{folder:05d}_stats.json", json.dumps({"count": 5, "successes": 3 + folder}).encode()))
    source = write_folder(tmp_path / "s", members)
    table = {"key": [f"00000000{i}" for i in range(5)], "status": ["success"] * 3 + ["failed_to_download", "success"]}
    pq.write_table(
        pa.table({**table, "error_message": [None] * 3 + ["HTTP Error 404", None]}), source / "00000.parquet"
    )
    assert format_of(SourceConfig(url=str(source))).name == "folder"
    made = shard(source, tmp_path / "out")
    found = samples(tmp_path / "out")
    assert found["00001/000010002.jpg"].text == "nr 000010002"
    assert found["00001/000010002.jpg"].meta["metadata"]["url"] == "https://example.org/000010002"
    assert {sample.label for sample in found.values()} == {None} and made.classes is None
    assert rejects(tmp_path / "out") == {
        "00000/000000003": "not_downloaded", "00000/000000004": "missing_image", "00001": "truncated_container",
    }  # fmt: skip
    assert (made.samples, made.fields, made.members) == (6, 12 + 3, 6 + 15 + 3)


def test_a_broken_record_is_a_row(make_tar: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path):
    make_tar(tmp_path / "s/0.tar", [("a.jpg", make_picture(0))])
    make_tar(tmp_path / "s/2.tar", [("b.jpg", make_picture(1))])
    others = [("0_stats.json", b"{"), ("1.parquet", b"x"), ("2_stats.json", b'{"mean": 1}'), ("README", b"y")]
    made = shard(write_folder(tmp_path / "s", others), tmp_path / "out", format="webdataset")
    assert rejects(tmp_path / "out") == {
        "0_stats.json": "bad_metadata", "1.parquet": "other_file", "2_stats.json": "other_file", "README": "other_file",
    }  # fmt: skip
    assert (made.members, made.fields) == (6, 0)


# Parquet: lists and several columns


PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def features(**columns: Any) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": columns}})}


@pytest.mark.parametrize("kind", [pa.list_(PICTURE), pa.large_list(PICTURE), pa.list_(PICTURE, 2)])
def test_lists_of_pictures(kind: pa.DataType, make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    rows = [[{"bytes": make_picture(2 * i + k), "path": f"{i}{k}.jpg"} for k in range(2)] for i in range(3)]
    table = pa.table({"images": pa.array([*rows, None], kind), "text": ["a", "b", "c", "d"]})
    pq.write_table(table, tmp_path / "t.parquet")
    made = shard(tmp_path / "t.parquet", tmp_path / "out")
    found = samples(tmp_path / "out")
    assert {name: (sample.text, sample.meta["view"]) for name, sample in found.items()} == {
        f"t.parquet/{i:07d}/{k}": ("abc"[i], str(k)) for i in range(3) for k in range(2)
    }
    assert found["t.parquet/0000001/1"].image == make_picture(3)
    assert found["t.parquet/0000001/1"].key == "t_0000001_1"
    assert rejects(tmp_path / "out") == {"t.parquet/0000003": "missing_image"}
    assert made.members == 7


def test_bad_pictures_in_lists_are_rows_of_their_own(make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    rows = [
        [{"bytes": make_picture(0), "path": None}, {"bytes": b"junk", "path": None}, {"bytes": None, "path": "x"}],
        [],
    ]
    table = pa.table({"images": pa.array(rows, pa.list_(PICTURE))}).replace_schema_metadata(
        features(images={"feature": {"_type": "Image"}, "_type": "Sequence"})
    )
    pq.write_table(table, tmp_path / "t.parquet")
    shard(tmp_path / "t.parquet", tmp_path / "out")
    assert set(samples(tmp_path / "out")) == {"t.parquet/0000000/0"}
    assert rejects(tmp_path / "out") == {
        "t.parquet/0000000/1": "not_an_image", "t.parquet/0000000/2": "missing_image", "t.parquet/0000001": "missing_image",
    }  # fmt: skip


def test_several_columns_of_pictures_are_views(make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    columns = {
        "left": pa.array([{"bytes": make_picture(i), "path": None} for i in range(3)], PICTURE),
        "right": pa.array([{"bytes": make_picture(10 + i), "path": None} if i else None for i in range(3)], PICTURE),
        "sound": pa.array([{"bytes": b"RIFF", "path": None}] * 3, PICTURE),
    }
    marks = features(left={"_type": "Image"}, right={"_type": "Image"}, sound={"_type": "Audio"})
    pq.write_table(pa.table(columns).replace_schema_metadata(marks), tmp_path / "t.parquet")
    made = shard(tmp_path / "t.parquet", tmp_path / "out")
    found = samples(tmp_path / "out")
    assert {sample.key: sample.meta["view"] for sample in found.values()} == {
        "t_0000000": "left", "t_0000001": "left", "t_0000002": "left", "t_0000001_right": "right", "t_0000002_right": "right",
    }  # fmt: skip
    assert made.members == made.samples == 5
    shard(tmp_path / "t.parquet", tmp_path / "one", image_column="right")
    assert {name: "view" in s.meta for name, s in samples(tmp_path / "one").items()} == {
        "t.parquet/0000001": False, "t.parquet/0000002": False,
    }  # fmt: skip


# Tables of captions and labels


def test_metadata_parquet_beside_pictures(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["deep/er/1.jpg", "2.jpg", "3.jpg"])
    table = {"file_name": ["deep/er/1.jpg", "2.jpg", None, "9.jpg"], "text": [["one", "uno"], ["two"], ["x"], ["y"]]}
    pq.write_table(pa.table({**table, "extra": [1, 2, 3, 4]}), source / "metadata.parquet")
    assert (
        format_of(SourceConfig(url=str(source))).name
        == format_of(SourceConfig(url=str(source / "metadata.parquet"))).name
        == "captions"
    )
    made = shard(source, tmp_path / "out")
    assert {name: s.meta["captions"] for name, s in samples(tmp_path / "out").items()} == {
        "deep/er/1.jpg": ["one", "uno"], "2.jpg": ["two"],
    }  # fmt: skip
    assert rejects(tmp_path / "out") == {
        "3.jpg": "no_caption", "metadata.parquet:2": "bad_metadata", "9.jpg": "missing_image",
    }  # fmt: skip
    assert (made.members, made.fields) == (6, 1)
    with pytest.raises(UsageError, match=r"expected a column nothing, found file_name"):
        shard(source, tmp_path / "out2", text_column="nothing")


def test_other_tables_do_not_make_captions(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["1.jpg"])
    pq.write_table(pa.table({"file_name": ["1.jpg"], "width": [3]}), source / "metadata.parquet")
    (source / "metadata.tsv").write_text("id\tnote\n1\tx\n")
    assert format_of(SourceConfig(url=str(source))).name == "folder"
    (source / "annotations").mkdir()
    document = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "one"}],
    }
    (source / "annotations/captions_all.json").write_text(json.dumps(document))
    assert format_of(SourceConfig(url=str(source))).name == "captions"
    shard(source, tmp_path / "out")
    assert samples(tmp_path / "out")["1.jpg"].text == "one"
    pictures = pa.array([{"bytes": b"x", "path": None}], PICTURE)
    (tmp_path / "hf").mkdir()
    pq.write_table(pa.table({"image": pictures, "text": ["a"]}), tmp_path / "hf/metadata.parquet")
    assert format_of(SourceConfig(url=str(tmp_path / "hf"))).name == "parquet"


@pytest.mark.parametrize(("name", "delimiter"), [("captions.csv", ";"), ("metadata.csv", "\t"), ("captions.tsv", "\t"),
                                                 ("captions.csv", ",")])  # fmt: skip
def test_csv_with_any_delimiter(name: str, delimiter: str, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["1.jpg", "2.jpg"])
    lines = [["id", "file_name", "text"], ["7", "1.jpg", '"one, first; really"'], ["8", "2.jpg", "two"]]
    (source / name).write_text("\n".join(map(delimiter.join, lines)))
    made = shard(source, tmp_path / "out")
    assert {name: s.text for name, s in samples(tmp_path / "out").items()} == {
        "1.jpg": "one, first; really", "2.jpg": "two",
    }  # fmt: skip
    assert (made.members, made.fields, made.rejects) == (3, 1, 0)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_label_csv_with_any_delimiter(delimiter: str, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["a.jpg", "b.jpg"])
    rows = [["key", "label"], ["a", "x, or y"], ["b", "w"]]
    (tmp_path / "labels.csv").write_text("\n".join(map(delimiter.join, rows)))
    shard(source, tmp_path / "out", label_csv=str(tmp_path / "labels.csv"))
    assert {name: s.meta["label_name"] for name, s in samples(tmp_path / "out").items()} == {
        "a.jpg": "x, or y",
        "b.jpg": "w",
    }


def test_lines_that_end_as_those_of_old_macs_and_long_fields(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["1.jpg", "2.jpg", "3.jpg"])
    caption = "long " * 40_000
    (source / "captions.csv").write_bytes(f"file_name;text\r1.jpg;one\r2.jpg;{caption}\n3.jpg;three\r\n".encode())
    made = shard(source, tmp_path / "out")
    assert {name: s.text for name, s in samples(tmp_path / "out").items()} == {
        "1.jpg": "one", "2.jpg": caption.strip(), "3.jpg": "three",
    }  # fmt: skip
    assert (made.members, made.fields, made.rejects) == (4, 1, 0)


def test_only_line_feeds_end_a_line_of_json(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Captions from web pages have U+2028 and U+0085, and not every program escapes them."""
    source = make_folder(["1.jpg", "2.jpg"])
    captions = ["one\u2028two\x85three", "four"]
    rows = [json.dumps({"file_name": f"{i + 1}.jpg", "text": captions[i]}, ensure_ascii=False) for i in range(2)]
    (source / "captions.jsonl").write_bytes("\r\n".join(rows).encode())
    made = shard(source, tmp_path / "out")
    assert {name: s.text for name, s in samples(tmp_path / "out").items()} == dict(
        zip(["1.jpg", "2.jpg"], captions, strict=True)
    )
    assert (made.members, made.fields, made.rejects) == (3, 1, 0)


# Tars by other names


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("pictures", bytes),
        ("a.tar.part", bytes),
        ("plain.tar.gz", bytes),
        ("a.tbz2", bz2.compress),
        ("a.txz", lzma.compress),
        ("packed", gzip.compress),
    ],
)
def test_a_tar_is_told_by_its_content_whatever_its_name(
    name: str, pack: Callable[[bytes], bytes], members: Members, make_tar: Callable[..., Path], tmp_path: Path
) -> None:
    plain = make_tar(tmp_path / "x.tar", members).read_bytes()
    (tmp_path / name).write_bytes(pack(plain))
    made = shard(tmp_path / name, tmp_path / "out")
    check_members(samples(tmp_path / "out"), f"{name}/")
    assert made.members == len(members)


def test_what_is_no_tar_inside_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name, content in (
        ("empty.tar.gz", b""),
        ("page.tgz", b"<html>" * 200),
        ("text.tar.gz", gzip.compress(b"x" * 2000)),
    ):
        (tmp_path / "s" / name).write_bytes(content)
    with pytest.raises(FlextokError, match="empty corpus"):
        shard(tmp_path / "s", tmp_path / "out")
    assert rejects(tmp_path / "out") == dict.fromkeys(["empty.tar.gz", "page.tgz", "text.tar.gz"], "bad_container")
