"""Files that hold many inputs (tars, Parquet): finding them and telling their split."""

import re
from dataclasses import dataclass
from itertools import product

from flextok import storage
from flextok.data.rejects import Reject
from flextok.data.sources.walk import require_split, size_and_stamp, split_folders, walk
from flextok.digests import digest_of

FILE_SPLIT = re.compile(r"(?:^|[-_.])(train|training|val|valid|validation|test)(?=[-_.\d])", re.IGNORECASE)
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Container:
    """One file of inputs: name relative to the source, where it is, and what tells one content from another."""

    name: str
    url: str
    size: int
    stamp: str


def list_containers(url: str, split: str, endings: tuple[str, ...]) -> tuple[list[Container], list[Reject], bool]:
    """The containers of a split, files that are none, and whether the source has splits at all. Raises UsageError.

    `url` is a folder, one file, or has number ranges in braces: `https://host/{000..012}.tar`.
    """
    found, others = _all_containers(url, endings)
    by_split: dict[str, list[Container]] = {}
    for container in found:
        by_split.setdefault(_split_of(container.name), []).append(container)
    if set(by_split) <= {""} or split == "all":
        return found, others, set(by_split) != {""}
    if "val" not in by_split and "test" in by_split:
        by_split["val"] = by_split["test"]
    require_split({name: name for name in by_split if name}, split, url)
    return by_split[split], others, True


def containers_digest(url: str, split: str, endings: tuple[str, ...]) -> str:
    """Changes when a container of the split, or what lies beside them, may have changed; no container is read."""
    containers, others, _ = list_containers(url, split, endings)
    return digest_of([[[c.name, c.size, c.stamp] for c in containers], others])


def _all_containers(url: str, endings: tuple[str, ...]) -> tuple[list[Container], list[Reject]]:
    urls = expand_braces(url)
    if len(urls) > 1 or is_file(url):
        return [_single(one) for one in urls], []
    found = walk(url)
    containers, others = [], found.rejects
    for name, size, stamp in sorted(zip(found.names, found.sizes, found.stamps, strict=True)):
        if name.lower().endswith(endings):
            containers.append(Container(name, storage.join(url, name), size, stamp))
        else:
            others.append(Reject(name, "other_file", f"not one of {', '.join(endings)}"))
    return containers, others


def expand_braces(url: str) -> list[str]:
    """The URLs that number ranges in braces stand for; the URL itself when there are none, or a file has that name."""
    ranges = BRACES.findall(url)
    if not ranges or (storage.is_local(url) and storage.exists(url)):
        return [url]
    counts = [[f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)] for first, last in ranges]
    parts = BRACES.sub("\0", url).split("\0")
    return [
        "".join(part + number for part, number in zip(parts, (*numbers, ""), strict=True))
        for numbers in product(*counts)
    ]


def is_file(url: str) -> bool:
    """Whether `url` is one file rather than a folder."""
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()
    return fs.isfile(path)


def file_name(url: str) -> str:
    """The last part of a URL, without any query."""
    return storage.redact(url).rstrip("/").rpartition("/")[2]


def _single(url: str) -> Container:
    try:
        if storage.is_local(url):
            return Container(file_name(url), url, *size_and_stamp(storage.local_path(url).stat()))
        fs, path = storage.filesystem(url)
        info = fs.info(path)
    except FileNotFoundError:
        return Container(file_name(url), url, 0, "")
    return Container(file_name(url), url, int(info.get("size") or 0), str(info.get("ETag") or "").strip('"'))


def _split_of(name: str) -> str:
    """ "train", "val", "test", or "" when neither folder nor file name says."""
    folder, _, file = name.rpartition("/")
    for split, found in split_folders(folder.split("/")).items():
        if found:
            return split
    if match := FILE_SPLIT.search(file):
        word = match[1].lower()
        return "train" if word.startswith("train") else "test" if word == "test" else "val"
    return ""
