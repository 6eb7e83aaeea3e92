"""Which pictures and texts of a tar or a folder belong together, told by their names alone.

The rule, for members of tars and for files of folders, whatever their order and however many dots they have:

- What stands behind the last dot of a name is its ending, in any case: `jpg`, `png`, ... name a picture, `json`, `txt` and
  `cls` a text. What stands before it is the name proper.
- A text belongs to each picture beside it that has its name, or its name, a dot and more. So `foo.txt` belongs to
  `foo.jpg`, `foo.left.jpg` and `foo.right.jpg`; `scan.0.txt` belongs to `scan.0.jpg`, and not to `scan.jpg` or `scan.1.jpg`.
- Of several texts of one kind the one with the longest name is used: `foo.left.txt` before `foo.txt` for `foo.left.jpg`.
- In tars, a name up to its first dot is the stem, as in WebDataset. A stem with one picture is one sample, and the stem its
  key. Each picture of a stem with several is a sample of its own, a view: its key is the stem and the view's name, which
  is what the pictures' names differ in (`left` and `right`, `0` and `1`), and which stands in the sample's JSON as `view`.
- In folders each picture is a sample with its whole name as key; it is a view where a text with a shorter name is its own.
- Views that share a text are never divided between train and val.

Every other member is counted: `flextok.data.rejects` has the reasons.
"""

from collections.abc import Iterable, Iterator, Mapping

TEXT_KINDS = ("json", "txt", "cls")

TextIndex = Mapping[str, Mapping[str, str]]
"""Paths of texts by their name without ending, then by kind."""


def split_ending(path: str) -> tuple[str, str]:
    """A path without the ending of its last part, and that ending in lower case ("" when there is none)."""
    folder, slash, last = path.rpartition("/")
    name, dot, ending = last.rpartition(".")
    return (folder + slash + name, ending.lower()) if dot else (path, "")


def stem_of(path: str) -> str:
    """A path up to the first dot of its last part: what WebDataset takes for the key."""
    folder, slash, last = path.rpartition("/")
    return folder + slash + last.partition(".")[0]


def names_above(name: str) -> Iterator[str]:
    """`name` and the shorter names whose texts are its own too, the longest first: `a.b.c`, `a.b`, `a`."""
    start = name.rfind("/") + 1
    yield name
    end = len(name)
    while (end := name.rfind(".", start, end)) > start:
        yield name[:end]


def index_texts(paths: Iterable[str]) -> TextIndex:
    """The texts among `paths`. Of names that differ in the case of their ending only one is taken, `txt` before `TXT`."""
    index: dict[str, dict[str, str]] = {}
    for path in paths:
        name, kind = split_ending(path)
        if kind in TEXT_KINDS:
            kinds = index.setdefault(name, {})
            kinds[kind] = max(path, kinds.get(kind, path))
    return index


def texts_of(name: str, index: TextIndex) -> dict[str, str]:
    """The path of each kind of text that belongs to the picture called `name` (without ending)."""
    found: dict[str, str] = {}
    for above in names_above(name):
        for kind, path in index.get(above, {}).items():
            found.setdefault(kind, path)
    return found


def root_of(name: str, index: TextIndex) -> str | None:
    """The shortest name of a text that belongs to the picture called `name`; None when it has no text.

    Pictures with a text in common have the same root.
    """
    root = None
    for above in names_above(name):
        if above in index:
            root = above
    return root


def name_views(stem: str, paths: Iterable[str]) -> dict[str, str]:
    """The view's name of each of several pictures of one stem: what is behind the stem, and its ending where needed.

    `a.left.jpg`, `a.right.jpg` are left and right; `a.jpg`, `a.seg.png` are "" and seg; `a.jpg`, `a.png` are jpg and png.
    """
    short = {path: split_ending(path)[0][len(stem) + 1 :] for path in paths}
    counts: dict[str, int] = {}
    for view in short.values():
        counts[view] = counts.get(view, 0) + 1
    return {path: view if counts[view] == 1 else path[len(stem) + 1 :] for path, view in short.items()}
