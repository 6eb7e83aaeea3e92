"""Partial results of an evaluation, kept beside where it will be, so that one that was killed resumes with them.

They lie in `<parent>/.parts/<fingerprint>/`, a safetensors file for each item of its work, and go when it is stored. The
fingerprint is that of all which decides the results and of how the work is cut into items. While it is at work, the
evaluation holds their folder.
"""

import datetime
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from flextok import storage
from flextok.digests import digest_of
from flextok.errors import IntegrityError
from flextok.version import __version__

PARTS = ".parts"
KEEPS = "what was measured is kept, and the same command resumes"
ARRAY = "array"
ENDING = ".safetensors"
R = TypeVar("R")


class Parts(Generic[R]):
    """The results of `count` items of work below `parent_url`; `to_plain` and `from_plain` translate one to what `pack` takes
    and back."""

    def __init__(
        self,
        parent_url: str,
        fingerprint: Any,
        count: int,
        to_plain: Callable[[R], Any],
        from_plain: Callable[[Any], R],
    ):
        self.url = storage.join(parent_url, PARTS, digest_of([fingerprint, count, __version__]))
        self._to_plain, self._from_plain, self._count = to_plain, from_plain, count
        names = set(storage.list_names(self.url))
        self.missing = [index for index in range(count) if _name(index) not in names]
        """Places of the items whose results are not there."""

    def results(self, computed: Iterator[R]) -> Iterator[R]:
        """The results of all items, in order. `computed` gives those of `missing`, each of which is stored."""
        missing = set(self.missing)
        for index in range(self._count):
            url = storage.join(self.url, _name(index))
            if index in missing:
                result = next(computed)
                storage.write_bytes(url, pack(self._to_plain(result)))
            else:
                result = self._from_plain(unpack(url))
            yield result

    def remove(self) -> None:
        """Forget them: what they are parts of is stored."""
        storage.remove(self.url)


def folders_of_parts(parent_url: str) -> list[str]:
    """URLs of the folders of parts below `parent_url`, each of one evaluation that is at work or was ended."""
    folder = storage.join(parent_url, PARTS)
    return [storage.join(folder, name) for name in storage.list_names(folder)]


def last_written(url: str) -> datetime.datetime | None:
    """When the last of the parts in the folder `url` was written, which is in the order of their names; None: there is none."""
    names = [name for name in storage.list_names(url) if name.endswith(ENDING)]
    return storage.modified(storage.join(url, names[-1])) if names else None


def cut(keys: Sequence[str], size: int, wanted: Collection[str] | None = None) -> list[Sequence[str]]:
    """`keys` in order, `size` at a time; of them the `wanted` ones where these are named."""
    if wanted is not None:
        chosen = frozenset(wanted)
        keys = [key for key in keys if key in chosen]
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def pack(value: Any) -> bytes:
    """Lists, dictionaries with names, numbers, texts and arrays as a safetensors file."""
    arrays: dict[str, np.ndarray] = {}

    def plain(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            arrays[str(len(arrays))] = np.ascontiguousarray(item)
            return {ARRAY: str(len(arrays) - 1)}
        if isinstance(item, dict):
            return {"items": [[name, plain(each)] for name, each in item.items()]}
        return [plain(each) for each in item] if isinstance(item, list | tuple) else item

    return save(arrays, {"value": json.dumps(plain(value))})


def unpack(url: str) -> Any:
    """What `pack` made the file at `url` of, tuples as lists; raises IntegrityError for another file."""
    try:
        with storage.as_local_file(url) as path, safe_open(path, "numpy") as file:
            document = json.loads((file.metadata() or {})["value"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise IntegrityError(
            f"expected a part of an evaluation in {url}, found: {error}; remove it and run again"
        ) from None

    def value(item: Any) -> Any:
        if isinstance(item, dict):
            return arrays[item[ARRAY]] if ARRAY in item else {name: value(each) for name, each in item["items"]}
        return [value(each) for each in item] if isinstance(item, list) else item

    return value(document)


def _name(index: int) -> str:
    return f"{index:06d}{ENDING}"
