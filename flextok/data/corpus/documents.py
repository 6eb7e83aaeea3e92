"""What stands in the JSON of single samples of a corpus, read without the pictures between."""

import io
import json
from collections.abc import Collection, Iterator
from typing import Any

from flextok.data.corpus.members import shard_members
from flextok.data.corpus.reader import Corpus, Shard, read_indexes
from flextok.data.corpus.tar import BLOCK
from flextok.data.sources.files import read_range
from flextok.errors import IntegrityError


def sample_documents(corpus: Corpus, keys: Collection[str]) -> dict[str, dict[str, Any]]:
    """The JSON of each of `keys`: `{source, width, height, label_name, captions, metadata, ...}`, `metadata` the fields that
    its source had.

    Raises IntegrityError where a shard is not as it was written, or has no such key.
    """
    wanted = frozenset(keys)
    found = {key: document for shard in corpus.shards for key, document in _of_shard(corpus, shard, wanted)}
    if lacking := wanted - found.keys():
        raise IntegrityError(f"expected key {min(lacking)} in {corpus.url}, found none; run flextok verify")
    return found


def _of_shard(corpus: Corpus, shard: Shard, wanted: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    index = read_indexes(corpus.url, [shard.name], ["key", "offset", "size"])
    starts = index["offset"].to_list()
    # Behind each picture lie the texts of its sample, up to the header of the next picture.
    ends = [start - BLOCK for start in starts[1:]] + [shard.bytes]
    for key, start, size, end in zip(index["key"], starts, index["size"], ends, strict=True):
        if key in wanted:
            begin = start + size + -size % BLOCK
            texts = io.BytesIO(read_range(shard.url, begin, end) + bytes(BLOCK))
            yield key, _document(dict(shard_members(texts, shard.url)), key, shard)


def _document(members: dict[str, bytes], key: str, shard: Shard) -> dict[str, Any]:
    try:
        return json.loads(members[f"{key}.json"])
    except (KeyError, ValueError) as error:
        raise IntegrityError(
            f"sample {key} of {shard.url} is not as written ({error!r}); run `flextok verify`"
        ) from None
