"""What a source is: a file by its first bytes, a folder by the files in it and in its first folders."""

from flextok import storage
from flextok.data.sources import parquet, webdataset
from flextok.data.sources.captions import COCO_NAME, TABLE_NAMES, USUAL_NAMES, is_captions_table
from flextok.data.sources.containers import expand_braces, is_file
from flextok.data.sources.files import is_image_name
from flextok.data.sources.walk import top_folders
from flextok.errors import UsageError

FOLDERS_LOOKED_INTO = 8
PARQUET_MAGIC = b"PAR1"
COMPRESSED_MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


def detect_format(url: str) -> str:
    """The format of the source at `url`: webdataset, parquet, captions or folder. Raises UsageError for other files."""
    first = expand_braces(url)[0]
    if first != url or is_file(url):
        return _file_format(first)
    folders = top_folders(url)
    names = storage.list_names(url)
    captions = [storage.join(url, name) for name in names]
    for folder in folders[:FOLDERS_LOOKED_INTO]:
        inner = storage.list_names(storage.join(url, folder))
        captions += [storage.join(url, folder, name) for name in inner]
        names += inner
        for name in inner[:FOLDERS_LOOKED_INTO]:
            if "." not in name:  # Hugging Face's converted sets: default/train/0000.parquet
                names += storage.list_names(storage.join(url, folder, name))
    lower = [name.lower() for name in names]
    pictures = sum(map(is_image_name, lower))
    tars = sum(name.endswith(webdataset.ENDINGS) for name in lower)
    captions = [place for place in captions if is_captions_table(place)]
    # Beside folders, and beside a table of captions, tables are img2dataset's records.
    tables = sum(
        name.endswith(parquet.ENDINGS) and name.removesuffix(parquet.ENDINGS[0]) not in folders for name in lower
    )
    if tars > pictures:
        return "webdataset"
    if tables - len(captions) > pictures:
        return "parquet"
    if captions or any((name in USUAL_NAMES and name not in TABLE_NAMES) or COCO_NAME.match(name) for name in names):
        return "captions"
    return "folder"


def _file_format(url: str) -> str:
    lower = url.partition("?")[0].lower()
    if lower.endswith((".jsonl", ".csv", ".tsv", ".json")) or is_captions_table(url):
        return "captions"
    with storage.open_read(url) as file:
        start = file.read(512)
    if start[:4] == PARQUET_MAGIC or lower.endswith(parquet.ENDINGS):
        return "parquet"
    if start[257:262] == b"ustar" or start.startswith(COMPRESSED_MAGICS) or lower.endswith(webdataset.ENDINGS):
        return "webdataset"
    raise UsageError(
        f"expected a folder, tar, Parquet or captions file in {url}, found a file starting with {start[:8]!r}"
    )
