"""Files on local disk or any fsspec URL. Everything appears whole or not at all.

Local files are written beside their goal under a temporary name, synced and renamed; on object stores a
file is uploaded in one put, which is atomic there. Readers and writers elsewhere use only these helpers.
"""

import contextlib
import datetime
import glob
import hashlib
import json
import os
import posixpath
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from flextok.errors import FlextokError, UsageError

CHUNK_BYTES = 1 << 20
TEMPORARY_PREFIX = ".tmp-"


def is_local(url: str) -> bool:
    """Whether `url` is a path on this machine."""
    return url.startswith(("/", "file://")) or "://" not in url


def local_path(url: str) -> Path:
    """The path of a local `url`; raises UsageError for a remote one."""
    if not is_local(url):
        raise UsageError(f"expected a local path, found {url}")
    return Path(os.path.expanduser(url.removeprefix("file://")))


def join(base: str, *parts: str) -> str:
    """`base/part/...` for paths and URLs alike."""
    return posixpath.join(base.rstrip("/") or "/", *parts)


def absolute(url: str) -> str:
    """`url` such that it means the same in every process (Ray workers have another working directory)."""
    return str(local_path(url).resolve()) if is_local(url) else url.rstrip("/")


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `url` and the path inside it.

    A local path is taken letter by letter: fsspec would read `a::b` as a chain of two stores.
    """
    if is_local(url):
        return fsspec.filesystem("file"), str(local_path(url).absolute())
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UsageError(f"cannot open {url}: {error}") from None
    return fs, path


@contextlib.contextmanager
def _named(url: str) -> Iterator[None]:
    """Notes on what a store raises in the block which URL it was about; of local files the error itself says so."""
    try:
        yield
    except Exception as error:
        if not is_local(url) and not hasattr(error, "__notes__"):
            error.add_note(redact(url))
        raise


def exists(url: str) -> bool:
    """Whether a file or folder is there (asked anew, never from a listing cache)."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    with _named(url):
        return fs.exists(path)


def size(url: str) -> int:
    """Bytes of a file; raises FileNotFoundError, or FlextokError when its server does not tell."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    with _named(url):
        found = fs.size(path)
    if found is None:
        raise FlextokError(f"expected the server of {url} to tell its size, found that it does not; copy it first")
    return int(found)


def modified(url: str) -> datetime.datetime:
    """When a file was last written, in UTC; raises FileNotFoundError."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    with _named(url):
        return cast(datetime.datetime, fs.modified(path)).astimezone(datetime.UTC)


def list_names(url: str) -> list[str]:
    """Sorted names directly under a folder, temporary files left out; empty when it does not exist."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    try:
        with _named(url):
            found = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    names = {posixpath.basename(str(name).rstrip("/")) for name in found}
    return sorted(name for name in names if name and not name.startswith(TEMPORARY_PREFIX))


def open_read(url: str) -> IO[bytes]:
    """A binary stream of `url`; raises FileNotFoundError."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    with _named(url):
        return cast(IO[bytes], fs.open(path, "rb"))


def read_bytes(url: str) -> bytes:
    """All bytes of `url`."""
    with open_read(url) as file:
        return file.read()


def read_json(url: str) -> Any:
    """The JSON document at `url`."""
    try:
        return json.loads(read_bytes(url))
    except json.JSONDecodeError as error:
        raise FlextokError(f"expected JSON in {url}, found something else ({error}); make it again") from None


@contextlib.contextmanager
def atomic_write(url: str) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `url` when the block ends well, and leaves no trace otherwise."""
    if is_local(url):
        goal = local_path(url)
        goal.parent.mkdir(parents=True, exist_ok=True)
        temporary = goal.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    else:
        temporary = Path(tempfile.gettempdir()) / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        with temporary.open("wb", buffering=CHUNK_BYTES) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if is_local(url):
            temporary.replace(local_path(url))
        else:
            fs, path = filesystem(url)
            with _named(url):
                fs.put_file(str(temporary), path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(url: str, content: bytes) -> None:
    """Put `content` at `url`, atomically."""
    with atomic_write(url) as file:
        file.write(content)


def write_json(url: str, value: Any) -> None:
    """Put `value` at `url` as indented JSON, atomically."""
    write_bytes(url, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


@contextlib.contextmanager
def as_local_file(url: str) -> Iterator[Path]:
    """A local path with the content of `url`, for libraries that read only local files."""
    if is_local(url):
        yield local_path(url)
        return
    fs, path = filesystem(url)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / posixpath.basename(path)
        with _named(url):
            fs.get_file(path, str(copy))
        yield copy


def sha256_file(url: str) -> str:
    """Hex sha256 of a file's bytes, read in a stream."""
    sha = hashlib.sha256()
    with open_read(url) as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def remove(url: str) -> None:
    """Delete a file or a whole folder; nothing happens when it is not there."""
    fs, path = filesystem(url)
    # fsspec takes `*`, `?` and `[` in what it deletes for a pattern, on every store but the local disk.
    with contextlib.suppress(FileNotFoundError), _named(url):
        fs.rm(path if is_local(url) else glob.escape(path), recursive=True)


def sizes(url: str) -> dict[str, int]:
    """Names and bytes of the files directly under a folder, temporary ones too; empty when it does not exist."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    try:
        with _named(url):
            listed = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {
        posixpath.basename(str(info["name"]).rstrip("/")): int(info.get("size") or 0)
        for info in listed
        if info["type"] == "file"
    }


def total_bytes(url: str) -> int:
    """Bytes of all files below a folder; 0 when it does not exist."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    with _named(url):
        return cast(int, fs.du(path)) if fs.exists(path) else 0


def redact(text: str) -> str:
    """`text` with the passwords and signed queries of any URLs in it left out, fit for logs and manifests."""
    text = re.sub(r"(\w+://)[^/\s@'\"]+@", r"\1", text)
    return re.sub(r"(\w+://[^\s?'\"]+)\?[^\s'\")]+", r"\1", text)
