"""Listing of all files below a folder, local or behind any fsspec URL, with nothing followed twice."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flextok import storage
from flextok.data.rejects import Reject
from flextok.errors import UsageError

SPLIT_NAMES = {
    "train": re.compile(r"^(train|training)(_?\d{4})?$", re.IGNORECASE),
    "val": re.compile(r"^(val|valid|validation)(_?\d{4})?$", re.IGNORECASE),
}


@dataclass
class Walk:
    """Files below a folder: parallel lists of name (relative, "/" between parts), size and stamp.

    A stamp (a store's ETag, a local file's modification time) changes when the content may have. It decides which
    files are read again, never what a corpus holds.
    """

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    stamps: list[str] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def add(self, name: str, size: int, stamp: str = "") -> None:
        """Take up one file, or reject it by its name."""
        if any(part.startswith(".") for part in name.split("/")):
            self.rejects.append(Reject(name, "hidden_file", "left alone"))
            return
        self.names.append(name)
        self.sizes.append(size)
        self.stamps.append(stamp)


def walk(url: str, below: str = "") -> Walk:
    """All files of the folder `url`, or of its subfolder `below`; names are relative to `url`. Raises UsageError."""
    found = Walk()
    if storage.is_local(url):
        _walk_local(str(storage.local_path(url)), below, found)
    else:
        _walk_remote(url, below, found)
    return found


def top_folders(url: str) -> list[str]:
    """Names of the folders directly below `url` that are not hidden and not empty, sorted."""
    if storage.is_local(url):
        with os.scandir(storage.local_path(url)) as entries:
            folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        return sorted(_shown(entry.name) for entry in folders if _has_entries(entry.path))
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()
    listed = fs.ls(path, detail=True)
    names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in listed if entry["type"] == "directory"]
    return sorted(name for name in names if not name.startswith("."))


def split_folders(folders: Iterable[str]) -> dict[str, str]:
    """The folder of each split, for those among `folders` that are named like a split."""
    found: dict[str, str] = {}
    for folder in folders:
        for split, pattern in SPLIT_NAMES.items():
            if pattern.match(folder):
                found.setdefault(split, folder)
    return found


def require_split(splits: dict[str, str], split: str, url: str) -> None:
    """Raises UsageError when the source has splits, but not the wanted one."""
    if split != "all" and splits and split not in splits:
        raise UsageError(
            f"no {split} split: expected {split}/ beside {', '.join(f'{name}/' for name in splits.values())} in {url}, "
            f"found none; add it, or put all pictures into one folder without splits and set corpus.val_fraction"
        )


def size_and_stamp(stat: os.stat_result) -> tuple[int, str]:
    """A local file's size and, as its stamp, the time it was last written (of a link: its target's)."""
    return stat.st_size, str(stat.st_mtime_ns)


def _walk_local(root: str, below: str, found: Walk) -> None:
    pending = [below]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    try:
                        _take_entry(entry, name, pending, found)
                    except OSError as error:
                        found.rejects.append(Reject(_shown(name), "unreadable", error.strerror or str(error)))
        except OSError as error:
            if folder == below:
                raise UsageError(
                    f"expected a folder to read in {os.path.join(root, folder)}, found: {error.strerror}"
                ) from None
            found.rejects.append(Reject(_shown(folder), "unreadable", f"folder: {error.strerror}"))


def _take_entry(entry: os.DirEntry[str], name: str, pending: list[str], found: Walk) -> None:
    if not _is_utf8(name):
        found.rejects.append(Reject(_shown(name), "unsafe_name", "not UTF-8; rename it"))
    elif entry.is_dir():
        if entry.is_symlink() and _leads_upwards(entry.path):
            found.rejects.append(Reject(name, "unsafe_name", "link to a folder above itself"))
        else:
            pending.append(name)
    elif entry.is_file():
        found.add(name, *size_and_stamp(entry.stat()))
    else:
        detail = "link to nothing" if entry.is_symlink() else "a device, pipe or socket"
        found.rejects.append(Reject(name, "unsafe_name", detail))


def _walk_remote(url: str, below: str, found: Walk) -> None:
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()
    try:
        listed: dict[str, Any] = dict(fs.find(storage.join(path, below) if below else path, detail=True))
    except FileNotFoundError:
        listed = {}
    prefix = path.rstrip("/") + "/"
    for full, info in sorted(listed.items()):
        name = full.removeprefix(prefix)
        if info.get("type") != "file" or name.endswith("/") or not name:
            continue
        found.add(name, int(info.get("size") or 0), str(info.get("ETag") or info.get("etag") or "").strip('"'))


def _leads_upwards(link: str) -> bool:
    """Whether following the link to a folder would come by the same link again."""
    target = os.path.realpath(link)
    return os.path.commonpath([target, os.path.realpath(os.path.dirname(link))]) == target


def _has_entries(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
