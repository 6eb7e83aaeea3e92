"""Reading of single files and of byte ranges, local or remote, bounded and with retries."""

import io
import json
import time
from dataclasses import dataclass, replace

from flextok import storage
from flextok.data.sources.base import InputError, RawInput
from flextok.data.sources.texts import LARGEST_TEXT, check_text_sizes, with_texts

ATTEMPTS = 5
FIRST_WAIT_S = 0.1
IMAGE_ENDINGS = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "mpo", "apng", "heic", "heif", "jp2", "jxl"]
)  # fmt: skip


def read_range(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes [start, end) of `url`, all without them; a failing store is asked up to five times. Raises OSError."""
    if storage.is_local(url):
        with open(url.removeprefix("file://"), "rb", buffering=0) as file:
            if start:
                file.seek(start)
            return file.readall() if end is None else _read_up_to(file, end - (start or 0))
    fs, path = storage.filesystem(url)
    for attempt in range(ATTEMPTS):
        try:
            content = fs.cat_file(path, start=start, end=end)
            assert isinstance(content, bytes)
            if start is not None and end is not None and len(content) > end - start:
                raise OSError("the server ignores byte ranges")
            return content
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # noqa: BLE001 - stores raise their own kinds: aiohttp, botocore, timeouts
            if attempt == ATTEMPTS - 1:
                raise OSError(storage.redact(str(error))) from None
            time.sleep(FIRST_WAIT_S * 2**attempt)
    raise AssertionError("unreachable")


def _read_up_to(file: io.FileIO, size: int) -> bytes:
    content = file.read(size)
    while len(content) < size and (more := file.read(size - len(content))):
        content += more
    return content


@dataclass(frozen=True)
class FolderReader:
    """Reads whole files of a folder and the texts beside them; the class is the first folder of a name when `classes` is set."""

    url: str
    remote: bool
    classes: bool
    split_prefixes: tuple[str, ...] = ()

    def read(self, name: str, size: int, where: str | None, max_bytes: int) -> RawInput:
        """See Reader."""
        note = json.loads(where) if where else {"texts": {}, "view": ""}
        check_text_sizes({kind: bytes for kind, (_, bytes) in note["texts"].items()})
        image = read_file(self.url, name, size, max_bytes)
        texts = {
            kind: read_file(self.url, path, bytes, LARGEST_TEXT[kind]) for kind, (path, bytes) in note["texts"].items()
        }
        inner = self._inner(name)
        folder, _, file_name = inner.rpartition("/")
        keys = (folder.rpartition("/")[2], folder, name, inner, file_name, file_name.rpartition(".")[0])
        raw = with_texts(image, texts, tuple(key for key in keys if key), note["view"])
        return replace(raw, label=inner.partition("/")[0]) if self.classes and folder else raw

    def _inner(self, name: str) -> str:
        first, _, rest = name.partition("/")
        return rest if first in self.split_prefixes and rest else name


def read_file(url: str, name: str, size: int, max_bytes: int) -> bytes:
    """The file `name` below `url`; raises InputError when it is too large or cannot be read."""
    if size > max_bytes:
        raise InputError("too_many_bytes", f"{size} bytes, allowed {max_bytes}")
    try:
        return (
            read_range(storage.join(url, name), 0, max_bytes + 1) if size == 0 else read_range(storage.join(url, name))
        )
    except OSError as error:
        raise InputError("unreadable", storage.redact(error.strerror or str(error))) from None


def is_image_name(name: str) -> bool:
    """Whether a file is named like a picture."""
    return name.rpartition(".")[2].lower() in IMAGE_ENDINGS
