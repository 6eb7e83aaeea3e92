"""The formats that a corpus can be made of. A new one is a file like this, and its name in the recipe:

    @dataclass(frozen=True)
    class LineReader:                                   # what workers read with, see base.Reader
        url: str
        remote: bool = False

        def read(self, name, size, where, max_bytes): return RawInput(picture_of(where))

    class Lines(SourceFormat):
        name = "lines"

        def detects(self, look): return look.url.endswith(".lines")

        def list(self, source, split, config, staging):
            rows = [(f"{i:07d}", f"line_{i}", 0, digest, line) for i, line in enumerate(lines_of(source.url))]
            frame = pl.DataFrame(rows, schema=LISTING_SCHEMA, orient="row")
            return Listing(frame, LineReader(source.url), [], None, has_splits=False)

    SOURCES.add("lines", Lines())

Only the listing is made in the process that registered the format. Readers travel to worker processes, which start anew
(they are spawned) and find the reader's class by importing its module: it must be importable there, so not lie in the
program's main file or inside a function, and it should be quick to import.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from flextok.registry import Register

if TYPE_CHECKING:
    from flextok.data.config import CorpusConfig, SourceConfig
    from flextok.data.sources.listing import Listing
    from flextok.data.sources.look import Look
    from flextok.data.sources.staging import Staging

AUTO = "auto"
"""In a recipe: the format that knows the source by its look."""


class SourceFormat(ABC):
    """How sources of one format are told, listed and, by the listing's reader, read."""

    name: str
    needs_files: bool = True
    """False: its URLs are not places in a storage, as that of the drawn corpus."""
    asked: int = 0
    """Formats with a lower number are asked first whether they know a source."""

    def detects(self, look: "Look") -> bool:
        """Whether this format reads the source; where it needs no files, told by `look.url` alone."""
        return False

    @abstractmethod
    def list(self, source: "SourceConfig", split: str, config: "CorpusConfig", staging: "Staging") -> "Listing":
        """All inputs of `split` ("train", "val", "all"), and what reads them. Raises UsageError, OSError."""

    def digest(self, source: "SourceConfig", split: str, config: "CorpusConfig") -> str:
        """Changes when the inputs may have changed; cheap, and by default that of the listing."""
        import tempfile

        from flextok.data.sources.listing import listing_digest
        from flextok.data.sources.staging import Staging

        with tempfile.TemporaryDirectory() as folder:
            return listing_digest(self.list(source, split, config, Staging(folder)))


SOURCES: Register[SourceFormat] = Register(
    "source format",
    home={
        "scenes": "flextok.data.sources.drawn",
        "drawn_words": "flextok.data.sources.drawn_words",
        "webdataset": "flextok.data.sources.webdataset",
        "parquet": "flextok.data.sources.parquet",
        "captions": "flextok.data.sources.captions",
        "folder": "flextok.data.sources.folder",
        "imagenet": "flextok.data.sources.folder",
    },
)


def splits_of(split: str) -> tuple[str, ...]:
    """The splits that `split` ("train", "val", "all") stands for, of a source that has them."""
    return ("train", "val") if split == "all" else (split,)


def all_formats() -> list[SourceFormat]:
    """Every format, in the order in which they are asked whether they know a source."""
    return sorted((SOURCES[name] for name in SOURCES.names()), key=lambda format: (format.asked, format.name))
