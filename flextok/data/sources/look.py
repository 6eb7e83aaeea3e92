"""What can be seen of a source without reading its inputs, for formats to tell whether it is theirs."""

from functools import cached_property

from flextok import storage
from flextok.data.sources.containers import expand_braces, is_file
from flextok.data.sources.files import is_image_name
from flextok.data.sources.walk import top_folders

FOLDERS_LOOKED_INTO = 8
START_BYTES = 512


class Look:
    """The look of the source at `url`; the storage is asked when something of it is."""

    def __init__(self, url: str):
        self.url = url

    @cached_property
    def file(self) -> str | None:
        """The (first) file that the URL stands for, None for a folder."""
        first = expand_braces(self.url)[0]
        return first if first != self.url or is_file(self.url) else None

    @cached_property
    def start(self) -> bytes:
        """The first bytes of the file; empty for a folder."""
        if self.file is None:
            return b""
        with storage.open_read(self.file) as file:
            return file.read(START_BYTES)

    @cached_property
    def folders(self) -> list[str]:
        """Folders directly below the folder."""
        return top_folders(self.url) if self.file is None else []

    @cached_property
    def _listed(self) -> list[tuple[str, list[str]]]:
        """The folder and its first folders, with the names in each."""
        if self.file is not None:
            return []
        urls = [self.url, *(storage.join(self.url, name) for name in self.folders[:FOLDERS_LOOKED_INTO])]
        return [(url, storage.list_names(url)) for url in urls]

    @property
    def places(self) -> list[str]:
        """URLs of what lies directly in the folder and in its first folders."""
        return [storage.join(url, name) for url, names in self._listed for name in names]

    @cached_property
    def names(self) -> list[str]:
        """Names in the folder and in its first folders, and of a few further down."""
        found = [name for _, names in self._listed for name in names]
        for url, names in self._listed[1:]:
            for name in names[:FOLDERS_LOOKED_INTO]:
                if "." not in name:  # Hugging Face's converted sets: default/train/0000.parquet
                    found += storage.list_names(storage.join(url, name))
        return found

    @cached_property
    def pictures(self) -> int:
        """How many of `names` are named like a picture."""
        return sum(map(is_image_name, self.names))

    def count(self, endings: tuple[str, ...]) -> int:
        """How many of `names` end in one of `endings`, in any case."""
        return sum(name.lower().endswith(endings) for name in self.names)

    def file_ends(self, endings: tuple[str, ...]) -> bool:
        """Whether it is a file whose name, without any query, ends in one of `endings`, in any case."""
        return self.file is not None and self.file.partition("?")[0].lower().endswith(endings)
