"""Every kind of source, from the files a person would have to the samples in the shards."""

import csv
import gzip
import json
import os
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import CorpusSummary, shard_corpus
from flextok.data.corpus.reader import Corpus, Sample, iter_shard
from flextok.data.corpus.verify import verify_corpus
from flextok.data.rejects import REASONS
from flextok.data.sources.catalog import source_digest
from flextok.errors import FlextokError, UsageError


def shard(source: Path | str, dest: Path, split: str = "all", **options: Any) -> CorpusSummary:
    config = CorpusConfig.model_validate({"source": str(source), "max_reject_fraction": 1.0, **options})
    summary = shard_corpus(config, split, str(dest), workers=1, progress=False)
    assert summary.samples + summary.rejects == summary.inputs
    assert summary.samples + summary.fields + summary.rejects == summary.members
    return summary


def samples(dest: Path) -> dict[str, Sample]:
    corpus = Corpus.open(str(dest))
    return {s.meta["source"]: s for name in corpus.shards for s in iter_shard(corpus.url, name)}


def rejects(dest: Path) -> dict[str, str]:
    frame = pl.read_parquet(dest / "rejects.parquet")
    assert set(frame["reason"]) <= set(REASONS)
    return dict(zip(frame["source"], frame["reason"], strict=True))


# Folders


def test_hostile_folder_is_accounted_for(shared: Path, tmp_path: Path) -> None:
    summary = shard(shared / "data/hostile/images", tmp_path / "out")
    found, refused = samples(tmp_path / "out"), rejects(tmp_path / "out")
    with (shared / "data/hostile/expected.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "image"]
    assert summary.inputs == len(rows) == 42
    for row in rows:
        name = row["file"].removeprefix("images/")
        assert (name in found) == (row["expected"] == "accept"), name
        assert (name in refused) == (row["expected"] == "reject"), name
    assert summary.duplicates == 1
    keys = [sample.key for sample in found.values()]
    assert len({key.lower() for key in keys}) == len(keys)
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for key in keys)
    assert not any(key.startswith("-") for key in keys)


def test_flat_nested_and_odd_names(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["a.jpg", "A.JPG", "deep/er/b.JPEG", "c", "a.png"])
    (source / "notes.txt").write_text("no picture")
    (source / "page.jpg").write_text("<html>")
    (source / ".git").mkdir()
    (source / ".git/config").write_text("x")
    os.symlink(tmp_path / "nowhere.jpg", source / "dangling.jpg")
    os.symlink(source, source / "deep/circle")
    os.mkfifo(source / "pipe.jpg")
    summary = shard(source, tmp_path / "out")
    assert set(samples(tmp_path / "out")) == {"a.jpg", "A.JPG", "deep/er/b.JPEG", "c", "a.png"}
    assert rejects(tmp_path / "out") == {
        "notes.txt": "other_file", "page.jpg": "not_an_image", ".git/config": "hidden_file",
        "dangling.jpg": "unsafe_name", "deep/circle": "unsafe_name", "pipe.jpg": "unsafe_name",
    }  # fmt: skip
    assert summary.classes is None


def test_class_folders_with_and_without_splits(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    shard(make_folder(["cat/1.jpg", "dog/1.jpg", "dog/2.jpg"], "flat"), tmp_path / "flat_out")
    corpus = Corpus.open(str(tmp_path / "flat_out"))
    assert corpus.classes == ["cat", "dog"]
    assert sorted(corpus.index()["label"].to_list()) == [0, 1, 1]

    source = make_folder(["train/cat/1.jpg", "train/emu/1.jpg", "val/cat/2.jpg", "val/bat/3.jpg"], "split")
    for split, labels in (("train", {"train/cat/1.jpg": 1, "train/emu/1.jpg": 2}),
                          ("val", {"val/bat/3.jpg": 0, "val/cat/2.jpg": 1})):  # fmt: skip
        shard(source, tmp_path / split, split=split)
        assert Corpus.open(str(tmp_path / split)).classes == ["bat", "cat", "emu"]
        assert {name: sample.label for name, sample in samples(tmp_path / split).items()} == labels


def test_label_csv_of_real_pictures(shared: Path, tmp_path: Path) -> None:
    labels = {"label_csv": "coarse_labels.csv", "label_key": "synset", "label_id": "coarse_id", "label_name": "coarse"}
    summary = shard(shared / "data/imagenet_mini", tmp_path / "val", split="val", **labels)
    assert (summary.samples, summary.rejects) == (100, 0)
    with (shared / "data/imagenet_mini/coarse_labels.csv").open(encoding="utf-8", newline="") as file:
        coarse = {row["synset"]: (int(row["coarse_id"]), row["coarse"]) for row in csv.DictReader(file)}
    for name, sample in samples(tmp_path / "val").items():
        assert (sample.label, sample.meta["label_name"]) == coarse[name.split("/")[1]]
        assert sample.image == (shared / "data/imagenet_mini" / name).read_bytes()


def test_label_csv_by_file_name_and_its_faults(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "labels.csv").write_text("file,kind\na,x\nb.jpg,w\n")
    options = {"label_csv": str(tmp_path / "labels.csv"), "label_key": "file", "label_name": "kind"}
    shard(source, tmp_path / "out", **options)
    assert {name: sample.label for name, sample in samples(tmp_path / "out").items()} == {"a.jpg": 1, "b.jpg": 0}
    assert rejects(tmp_path / "out") == {"c.jpg": "no_label"}
    with pytest.raises(UsageError, match="expected columns nothing, kind"):
        shard(source, tmp_path / "out2", **{**options, "label_key": "nothing"})


def test_splits_that_are_not_there_and_splits_by_hash(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["train/1.jpg", "train/2.jpg"], "only_train")
    with pytest.raises(UsageError, match=r"no val split.*corpus\.val_fraction"):
        shard(source, tmp_path / "out", split="val")
    flat = make_folder([f"{i}.jpg" for i in range(60)], "flat")
    parts = {}
    for split in ("train", "val"):
        shard(flat, tmp_path / split, split=split, val_fraction=0.3)
        parts[split] = set(samples(tmp_path / split))
    assert not parts["train"] & parts["val"] and len(parts["train"] | parts["val"]) == 60
    assert 8 <= len(parts["val"]) <= 28


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found nothing there"):
        shard(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlextokError, match="empty corpus"):
        shard(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty/x.jpg").write_text("no picture")
    with pytest.raises(FlextokError, match=r"empty corpus.*1 rejects only"):
        shard(tmp_path / "empty", tmp_path / "out")
    assert rejects(tmp_path / "out") == {"x.jpg": "not_an_image"}


# WebDataset


def test_hostile_tars_are_accounted_for(shared: Path, tmp_path: Path) -> None:
    with (shared / "data/hostile/expected.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "tar"]
    assert len(rows) == 11
    shard(shared / "data/hostile/tars", tmp_path / "out")
    found, refused = samples(tmp_path / "out"), rejects(tmp_path / "out")
    containers = {"empty.tar": "empty_container", "zero_byte.tar": "bad_container", "not_a_tar.tar": "bad_container"}
    for row in rows:
        name = row["file"].removeprefix("tars/")
        assert sum(source.startswith(f"{name}/") for source in found) == int(row["ok_samples"]), name
        assert sum(source.startswith(f"{name}/") for source in refused) == int(row["bad_samples"]), name
        assert refused.get(name) == containers.get(name), name
    assert not (tmp_path / "evil.jpg").exists()


def test_webdataset_with_captions_is_the_folder_with_captions(shared: Path, tmp_path: Path) -> None:
    shard(shared / "data/text_image/webdataset", tmp_path / "tars")
    shard(shared / "data/text_image/folder", tmp_path / "folder")
    tars = {sample.key: sample for sample in samples(tmp_path / "tars").values()}
    folder = {sample.key: sample for sample in samples(tmp_path / "folder").values()}
    assert len(tars) == 172 and tars.keys() == folder.keys()
    assert all((tars[key].image, tars[key].text) == (folder[key].image, folder[key].text) for key in tars)
    assert len(tars["000000000790"].meta["captions"]) == 5
    assert tars["000000000790"].meta["metadata"]["licence"]


def test_img2dataset_with_its_sidecars(
    make_tar: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    source = tmp_path / "i2d"
    members = []
    for i in range(3):
        meta = {"url": f"https://example.org/{i}.jpg", "key": f"00000000{i}", "caption": f"nr {i}", "status": "success"}
        members += [(f"00000000{i}.jpg", make_picture(i)), (f"00000000{i}.json", json.dumps(meta).encode()),
                    (f"00000000{i}.txt", f"nr {i}".encode())]  # fmt: skip
    make_tar(source / "00000.tar", members)
    keys = [f"00000000{i}" for i in range(5)]
    status = ["success", "success", "success", "failed_to_download", "success"]
    errors = [None, None, None, "HTTP Error 404", None]
    pq.write_table(pa.table({"key": keys, "status": status, "error_message": errors}), source / "00000.parquet")
    (source / "00000_stats.json").write_text(json.dumps({"count": 5, "successes": 4, "failed_to_download": 1}))
    shard(source, tmp_path / "out")
    found = samples(tmp_path / "out")
    assert {sample.text for sample in found.values()} == {"nr 0", "nr 1", "nr 2"}
    assert found["00000.tar/000000001.jpg"].meta["metadata"]["url"] == "https://example.org/1.jpg"
    assert rejects(tmp_path / "out") == {
        "00000.tar/000000003": "not_downloaded", "00000.tar/000000004": "missing_image",
    }  # fmt: skip
    (source / "00000.parquet").unlink()
    shard(source, tmp_path / "out2")
    assert rejects(tmp_path / "out2") == {"00000.tar": "truncated_container"}


def test_tar_oddities(make_tar: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    long_name = "x" * 150
    first = [("./sub/a.jpg", make_picture(1)), ("./sub/a.cls", b"7"), (f"{long_name}.png", make_picture(2, format="PNG")),
             ("._a.jpg", b"fork"), ("ünï.jpg", make_picture(3)), ("b.seg.png", make_picture(4)), ("b.jpg", make_picture(5))]  # fmt: skip
    whole = make_tar(tmp_path / "s/a.tar", first).read_bytes()
    second = make_tar(tmp_path / "s/b.tar", [("c.jpg", make_picture(6))]).read_bytes()
    (tmp_path / "s/b.tar").write_bytes(whole + second)  # joined by cat: the end mark is in the middle
    (tmp_path / "s/a.tar").write_bytes(gzip.compress(whole))
    (tmp_path / "s/a.tar").rename(tmp_path / "s/a.tar.gz")
    shard(tmp_path / "s", tmp_path / "out")
    found = samples(tmp_path / "out")
    expected = ["sub/a.jpg", f"{long_name}.png", "ünï.jpg", "b.jpg", "b.seg.png"]
    assert set(found) == {f"{tar}/{name}" for tar in ("a.tar.gz", "b.tar") for name in expected} | {"b.tar/c.jpg"}
    assert found["b.tar/sub/a.jpg"].label == 7
    assert found["b.tar/b.jpg"].image == make_picture(5)
    assert set(rejects(tmp_path / "out").values()) == {"hidden_file"}
    assert not (tmp_path / "out/.staging").exists()


def test_a_tar_cut_between_samples_is_reported(
    make_tar: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    tar = make_tar(tmp_path / "s/a.tar", [(f"{i}.jpg", make_picture(i)) for i in range(3)])
    first = 512 + len(make_picture(0)) + -len(make_picture(0)) % 512
    tar.write_bytes(tar.read_bytes()[:first])
    shard(tmp_path / "s", tmp_path / "out")
    assert set(samples(tmp_path / "out")) == {"a.tar/0.jpg"}
    assert rejects(tmp_path / "out") == {"a.tar": "truncated_container"}


# Captions


def test_captions_as_csv_and_coco(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["1.jpg", "2.jpg", "3.jpg"], "csv")
    (source / "captions.csv").write_text(
        'file_name,text\n1.jpg,"one, first"\n1.jpg,once more\n2.jpg,two\n9.jpg,gone\n../x.jpg,out\n'
    )
    shard(source, tmp_path / "csv_out")
    assert samples(tmp_path / "csv_out")["1.jpg"].meta["captions"] == ["one, first", "once more"]
    assert rejects(tmp_path / "csv_out") == {
        "3.jpg": "no_caption", "9.jpg": "missing_image", "captions.csv:6": "unsafe_name",
    }  # fmt: skip

    coco = make_folder(["train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg"], "coco")
    (coco / "annotations").mkdir()
    for split, numbers in (("train", (1, 2)), ("val", (3,))):
        document = {
            "images": [{"id": n, "file_name": f"{n}.jpg"} for n in numbers],
            "annotations": [
                {"id": 10 * n + k, "image_id": n, "caption": f"{n} {k} "} for n in numbers for k in range(2)
            ],
        }
        (coco / f"annotations/captions_{split}2017.json").write_text(json.dumps(document))
    shard(coco, tmp_path / "coco_train", split="train")
    assert {n: s.meta["captions"] for n, s in samples(tmp_path / "coco_train").items()} == {
        "train2017/1.jpg": ["1 0", "1 1"], "train2017/2.jpg": ["2 0", "2 1"],
    }  # fmt: skip
    shard(coco, tmp_path / "coco_val", split="val")
    assert samples(tmp_path / "coco_val")["val2017/3.jpg"].text == "3 0"


def test_bad_lines_of_captions_are_counted(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(["1.jpg"])
    (source / "captions.jsonl").write_text('{"file_name": "1.jpg", "text": "one"}\n{"file_name": "1.j\n{"text": "x"}\n')
    shard(source, tmp_path / "out")
    assert rejects(tmp_path / "out") == {"captions.jsonl:2": "bad_metadata", "captions.jsonl:3": "bad_metadata"}


# Parquet


def hugging_face(path: Path, images: list[bytes | None], labels: list[int], names: list[str]) -> None:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    table = pa.table(
        {
            "image": pa.array([{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images)],
                              pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array(labels, pa.int64()),
            "text": pa.array([f"text {i}" for i in range(len(images))]),
        }
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)


def test_hugging_face_parquet(make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    names = ["crane", "dog", "crane"]  # ids, not names, tell ImageNet's two cranes apart
    data = tmp_path / "hf/data"
    images: list[bytes | None] = [make_picture(i) for i in range(8)]
    hugging_face(data / "train-00000-of-00002.parquet", images, [0, 1, 2, 0, 1, 2, 0, -1], names)
    hugging_face(data / "train-00001-of-00002.parquet", [make_picture(20), None, b"junk"], [0, 1, 7], names)
    hugging_face(data / "test-00000-of-00001.parquet", [make_picture(30)], [2], names)
    summary = shard(tmp_path / "hf", tmp_path / "train", split="train", shard_samples=5)
    assert summary.classes == names and summary.shards == 2
    found = samples(tmp_path / "train")
    first = "data/train-00000-of-00002.parquet"
    assert [found[f"{first}/{i:07d}"].label for i in range(8)] == [0, 1, 2, 0, 1, 2, 0, None]
    assert [found[f"{first}/{i:07d}"].image for i in range(8)] == images
    assert found[f"{first}/0000003"].text == "text 3"
    assert rejects(tmp_path / "train") == {
        "data/train-00001-of-00002.parquet/0000001": "missing_image",
        "data/train-00001-of-00002.parquet/0000002": "not_an_image",
    }
    shard(tmp_path / "hf", tmp_path / "val", split="val")
    assert [sample.label for sample in samples(tmp_path / "val").values()] == [2]
    assert not (tmp_path / "train/.staging").exists()


def test_plain_binary_column_by_option(make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    table = pa.table({"blob": [make_picture(i) for i in range(3)], "says": ["a", "b", "c"], "kind": [1, 0, 1]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UsageError, match=r"set corpus\.image_column"):
        shard(tmp_path / "t.parquet", tmp_path / "out")
    options = {"image_column": "blob", "text_column": "says", "label_column": "kind"}
    shard(tmp_path / "t.parquet", tmp_path / "out", **options)
    found = samples(tmp_path / "out")
    assert [(s.label, s.text) for _, s in sorted(found.items())] == [(1, "a"), (0, "b"), (1, "c")]


def test_bad_parquet_is_reported_and_the_rest_kept(make_picture: Callable[..., bytes], tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf/a.parquet", [make_picture(0)], [0], ["x"])
    (tmp_path / "hf/b.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "hf/c.parquet").write_bytes(b"")
    shard(tmp_path / "hf", tmp_path / "out")
    assert len(samples(tmp_path / "out")) == 1
    assert rejects(tmp_path / "out") == {"b.parquet": "bad_container", "c.parquet": "bad_container"}


# Several sources, other places


def test_several_sources_with_names_weights_and_classes(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    first = make_folder(["cat/1.jpg", "dog/1.jpg"], "first")
    second = make_folder(["ape/1.jpg", "dog/1.jpg"], "second", first=10)
    sources = [{"url": str(first), "name": "one"}, {"url": str(second), "weight": 3.0}]
    shard("scenes", tmp_path / "out", sources=sources)
    found = samples(tmp_path / "out")
    assert {name: sample.label for name, sample in found.items()} == {
        "one/cat/1.jpg": 1, "one/dog/1.jpg": 2, "second/ape/1.jpg": 0, "second/dog/1.jpg": 2,
    }  # fmt: skip
    corpus = Corpus.open(str(tmp_path / "out"))
    assert corpus.classes == ["ape", "cat", "dog"]
    by_source = dict(zip(corpus.index()["source"], corpus.sample_weights()[:].tolist(), strict=True))
    assert by_source["second/ape/1.jpg"] == 3 * by_source["one/cat/1.jpg"]
    assert verify_corpus(corpus.url) == []
    # Weights change what training gives, so the digest; equal ones of any size give that of no weights.
    digests = {
        weight: shard("scenes", tmp_path / "out", sources=[{**sources[0], "weight": weight}, sources[1]]).digest
        for weight in (1.0, 2.0, 3.0)
    }
    unweighted = [{**source, "weight": 1.0} for source in sources]
    assert len(set(digests.values())) == 3 and digests[1.0] == corpus.digest
    assert digests[3.0] == shard("scenes", tmp_path / "out", sources=unweighted).digest
    with pytest.raises(ValueError, match="different names"):
        CorpusConfig.model_validate({"sources": [{"url": "/a/x"}, {"url": "/b/x"}]})


@pytest.fixture
def web(tmp_path: Path):
    """A folder served over HTTP on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    (tmp_path / "web").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / "web", f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_tars_and_tables_over_http(
    web: tuple[Path, str], make_tar: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    folder, url = web
    for i in range(3):
        make_tar(folder / f"set-{i:03d}.tar", [(f"{i}{k}.jpg", make_picture(10 * i + k)) for k in range(4)])
    hugging_face(folder / "t.parquet", [make_picture(99)], [0], ["x"])
    over_http = shard(f"{url}/set-{{000..002}}.tar?token=secret", tmp_path / "http")
    assert over_http.samples == 12
    assert "secret" not in (tmp_path / "http/manifest.json").read_text()
    shard(folder, tmp_path / "disk", format="webdataset")
    assert over_http.digest == Corpus.open(str(tmp_path / "disk")).digest
    assert shard(f"{url}/t.parquet", tmp_path / "table").samples == 1
    with pytest.raises(UsageError, match="found nothing there"):
        shard(f"{url}/gone.tar", tmp_path / "gone")


def test_source_digest_sees_changes_of_its_split_and_nothing_else(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_folder(["train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg"])
    config = CorpusConfig.model_validate({"source": str(source)})
    before = {split: source_digest(config, split) for split in ("train", "val")}
    assert {split: source_digest(config, split) for split in before} == before
    os.utime(source / "train/a/1.jpg", (0, 0))  # may have been replaced by one of equal size
    touched = source_digest(config, "train")
    make_folder(["train/a/4.jpg"], first=3)
    assert len({before["train"], touched, source_digest(config, "train")}) == 3
    assert source_digest(config, "val") == before["val"]
    scenes = CorpusConfig.model_validate({"scenes": {"train_samples": 3}})
    other = CorpusConfig.model_validate({"scenes": {"train_samples": 4}})
    assert source_digest(scenes, "train") != source_digest(other, "train")
    assert source_digest(scenes, "val") == source_digest(other, "val")


def test_samples_read_with_webdataset_and_tarfile(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    import tarfile

    import webdataset

    shard(make_folder(["cat/1.jpg", "dog/2.jpg", "dog/3.jpg"]), tmp_path / "out")
    url = str(tmp_path / "out/shards/000000.tar")
    found = {s["__key__"]: s for s in webdataset.WebDataset(url, shardshuffle=False).decode("rgb8")}
    ours = {sample.key: sample for sample in samples(tmp_path / "out").values()}
    assert found.keys() == ours.keys()
    for key, sample in found.items():
        assert (
            sample["cls"] == ours[key].label and sample["json"] == ours[key].meta and sample["jpg"].shape == (32, 32, 3)
        )
    with tarfile.open(url) as tar:
        assert {member.name for member in tar} == {f"{key}.{ext}" for key in ours for ext in ("jpg", "cls", "json")}


def test_damaged_gzip_keeps_what_came_before(
    make_tar: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    tar = make_tar(
        tmp_path / "x.tar", [(f"{i}.png", make_picture(i, 200, "PNG") + os.urandom(100_000)) for i in range(6)]
    )
    packed = gzip.compress(tar.read_bytes())
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a.tar.gz").write_bytes(packed[: len(packed) // 2])
    shard(tmp_path / "s", tmp_path / "out")
    assert 1 <= len(samples(tmp_path / "out")) <= 3
    assert set(rejects(tmp_path / "out").values()) == {"truncated_container"}


def test_a_tar_header_that_claims_gigabytes_allocates_nothing(
    make_tar: Callable[..., Path], make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    tar = bytearray(
        make_tar(tmp_path / "s/a.tar", [("0.jpg", make_picture(0)), ("1.jpg", make_picture(1))]).read_bytes()
    )
    second = 512 + len(make_picture(0)) + -len(make_picture(0)) % 512
    header = tar[second : second + 512]
    header[124:136] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    tar[second : second + 512] = header
    (tmp_path / "s/a.tar").write_bytes(tar)
    shard(tmp_path / "s", tmp_path / "out")
    assert set(samples(tmp_path / "out")) == {"a.tar/0.jpg"}
    assert rejects(tmp_path / "out") == {"a.tar/1": "truncated_container"}
