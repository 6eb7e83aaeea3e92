"""Which members belong together, and that each of them has a place, for any names in any order."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from flextok.data.config import CorpusConfig
from flextok.data.corpus.job import shard_corpus
from flextok.data.corpus.reader import Corpus
from flextok.data.rejects import REASONS
from flextok.data.sources.files import IMAGE_ENDINGS
from flextok.data.sources.folder import list_folder
from flextok.data.sources.stems import index_texts, name_views, names_above, root_of, split_ending, stem_of, texts_of
from flextok.data.sources.tarreader import TarMember, tar_members
from flextok.data.sources.tarsamples import TarContent, sort_members

words = st.sampled_from(["a", "b", "0", "1", "left", "A b"])
endings = st.sampled_from(["jpg", "JPG", "png", "txt", "TXT", "json", "cls", "npy", ""])


@st.composite
def paths(draw: st.DrawFn) -> str:
    """Names with up to four dots, in up to one folder, some hidden or leading out."""
    folder = draw(st.sampled_from(["", "", "", "d/", "./", "d.e/", ".h/", "../"]))
    name = ".".join([*draw(st.lists(words, min_size=1, max_size=4)), draw(endings)])
    return folder + draw(st.sampled_from(["", "", "", "", "."])) + name.rstrip(".")


def members(names: list[str], cut: bool = False) -> list[TarMember]:
    """Regular files with a place of their own each; the last one is cut if wanted."""
    last = len(names) - 1
    return [TarMember(name, "file", 1000 * i, 10 + i, not (cut and i == last)) for i, name in enumerate(names)]


def tar_of(named: list[tuple[str, bytes]]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in named:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def count(content: TarContent) -> int:
    return (
        len(content.inputs) + sum(one.fields for one in content.inputs) + len(content.rejects) + content.fields
    )  # fmt: skip


def named(content: TarContent, names: list[str]) -> dict[str, tuple[object, ...]]:
    """Each input by its path, with its texts' names in place of where they lie."""
    return {
        one.path: (one.stem, one.view, names[one.image[0] // 1000], one.far_texts, one.group, one.fields,
                   {kind: names[place[0] // 1000] for kind, place in one.texts.items()})
        for one in content.inputs
    }  # fmt: skip


@given(st.lists(paths(), max_size=14), st.booleans())
def test_every_member_is_counted_once_also_of_repeated_names(names: list[str], cut: bool) -> None:
    content = sort_members(members(names, cut))
    assert count(content) == len(names)
    assert {reject.reason for reject in content.rejects} <= set(REASONS)
    places = [one.image for one in content.inputs]
    assert len(set(places)) == len(places)
    assert len({one.path for one in content.inputs}) == len(places)


@given(st.lists(paths(), max_size=14, unique_by=lambda name: name.removeprefix("./")), st.data())
def test_order_decides_nothing(names: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(names))
    first, second = sort_members(members(names)), sort_members(members(shuffled))
    assert named(first, names) == named(second, shuffled)
    assert sorted(first.rejects) == sorted(second.rejects)
    assert first.fields == second.fields


@given(st.lists(paths(), max_size=14, unique=True))
def test_no_picture_vanishes(names: list[str]) -> None:
    """Every picture with a clean name is a sample, and no two are one."""
    content = sort_members(members(names))
    clean = {name.removeprefix("./") for name in names if not any(part[:1] == "." for part in name.removeprefix("./").split("/"))}  # fmt: skip
    pictures = {name for name in clean if split_ending(name)[1] in IMAGE_ENDINGS}
    assert {names[one.image[0] // 1000].removeprefix("./") for one in content.inputs} == pictures


@given(st.lists(paths(), max_size=10, unique=True))
def test_texts_are_those_a_slow_search_finds(names: list[str]) -> None:
    index = index_texts(names)
    for picture in names:
        own, _ = split_ending(picture)
        for kind in ("json", "txt", "cls"):
            fitting = [
                name for name in names
                if split_ending(name)[1] == kind and (own + ".").startswith(split_ending(name)[0] + ".")
                and name.count("/") == own.count("/")
            ]  # fmt: skip
            longest = max((len(split_ending(name)[0]) for name in fitting), default=-1)
            found = texts_of(own, index).get(kind)
            nearest = [name for name in fitting if len(split_ending(name)[0]) == longest]
            assert found == max(nearest, default=None), picture


@given(st.lists(paths(), max_size=10, unique=True))
def test_views_with_a_text_in_common_are_in_one_group(names: list[str]) -> None:
    inputs = sort_members(members(names)).inputs
    for one in inputs:
        for other in inputs:
            if one is not other and set(one.texts.values()) & set(other.texts.values()):
                assert one.group is not None and one.group == other.group


def test_names() -> None:
    assert split_ending("d.e/a.b.JPG") == ("d.e/a.b", "jpg")
    assert split_ending("d.e/a") == ("d.e/a", "")
    assert stem_of("d.e/a.b.jpg") == "d.e/a"
    assert list(names_above("d.e/a.b.c")) == ["d.e/a.b.c", "d.e/a.b", "d.e/a"]
    assert name_views("a", ["a.left.jpg", "a.right.jpg"]) == {"a.left.jpg": "left", "a.right.jpg": "right"}
    assert name_views("a", ["a.jpg", "a.png", "a.b.png"]) == {"a.jpg": "jpg", "a.png": "png", "a.b.png": "b"}
    index = index_texts(["a.txt", "a.b.json"])
    assert texts_of("a.b", index) == {"json": "a.b.json", "txt": "a.txt"} and root_of("a.b", index) == "a"


def test_repeated_names_are_copies_of_a_sample() -> None:
    names = ["a.jpg", "a.txt", "a.jpg", "a.txt", "b.left.jpg", "b.txt", "b.txt", "b.right.jpg"]
    content = sort_members(members(names))
    assert {one.path: one.texts["txt"] for one in content.inputs} == {
        "a.jpg": (1000, 11), "b.left.jpg": (5000, 15), "b.right.jpg": (5000, 15),
    }  # fmt: skip
    assert Counter((reject.source, reject.reason) for reject in content.rejects) == {
        ("a", "duplicate_key"): 1, ("b", "duplicate_key"): 1,
    }  # fmt: skip


def test_members_that_are_no_use_are_rows() -> None:
    names = ["a.jpg", "a.npy", "a.meta.json", "b.c.jpg", "b.c.txt", "b.txt", "d.json", "d.txt"]
    content = sort_members(members(names))
    assert {reject.source: (reject.reason, reject.detail) for reject in content.rejects} == {
        "a.npy": ("unused_field", "not one of json, txt, cls"),
        "a.meta.json": ("unused_field", "not named like a picture of its stem: a.jpg"),
        "b.txt": ("unused_field", "its pictures have nearer ones"),
        "d": ("missing_image", "has only json, txt"),
    }


@settings(max_examples=25)
@given(st.lists(paths(), min_size=1, max_size=12, unique_by=lambda name: name.removeprefix("./").lower()))
def test_a_real_tar_and_a_real_folder_have_the_same_texts(tmp_path_factory, names: list[str]) -> None:
    names = [name for name in names if not name.startswith("../")]
    root: Path = tmp_path_factory.mktemp("both")
    file = tar_of([(name, name.encode()) for name in names])
    for name in names:
        path = root / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    inputs = sort_members(tar_members(file, len(file.getvalue()))).inputs
    (root / "folder").mkdir(exist_ok=True)
    listing = list_folder(str(root / "folder"), "all", "folder")
    here = dict(listing.frame.select("name", "where").iter_rows())
    assert listing.frame.height + int(listing.frame["fields"].sum()) + len(listing.rejects) == len(names)
    for one in inputs:
        offset, size = one.image
        file.seek(offset)
        name = file.read(size).decode().removeprefix("./")
        texts = {}
        for kind, (start, length) in one.texts.items():
            file.seek(start)
            texts[kind] = file.read(length).decode().removeprefix("./")
        assert name in here
        note = here[name]
        beside = {} if note is None else {kind: path for kind, (path, _) in json.loads(note)["texts"].items()}
        assert beside == texts


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(paths(), st.booleans()), min_size=1, max_size=10, unique_by=lambda one: one[0].removeprefix("./")
    )
)
def test_the_sum_of_any_tar_adds_up(tmp_path_factory, make_picture, named: list[tuple[str, bool]]) -> None:
    """Pictures that decode or not, texts that parse or not, under any names."""
    root = tmp_path_factory.mktemp("any")
    made = make_picture(0)
    members = [("control.jpg", made)]
    for name, good in named:
        picture = split_ending(name)[1] in IMAGE_ENDINGS
        members.append((name, (made if picture else b"7") if good else b"\xff{"))
    (root / "a.tar").write_bytes(tar_of(members).getvalue())
    config = CorpusConfig.model_validate({"source": str(root / "a.tar"), "max_reject_fraction": 1.0})
    summary = shard_corpus(config, "all", str(root / "out"), progress=False)
    rows = pq.read_table(root / "out/rejects.parquet").num_rows
    assert len(members) == summary.members == summary.samples + summary.fields + rows
    assert (
        summary.samples
        == Corpus.open(str(root / "out")).num_samples
        == Corpus.open(str(root / "out")).index()["source"].n_unique()
    )
