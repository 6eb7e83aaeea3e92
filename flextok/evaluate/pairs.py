"""Which pictures of two places are read, and which of them are compared in pairs: those whose names are equal."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from flextok.data.sources.stems import split_ending
from flextok.errors import UsageError
from flextok.evaluate.given import ArrayPart, Folder, FolderPart, Given
from flextok.evaluate.grid import GIVEN, ORIGINAL
from flextok.evaluate.images import choose_keys

logger = logging.getLogger(__name__)


class Pair(NamedTuple):
    """A picture and its original by the names of their files; `key` is what these have in common."""

    key: str
    name: str
    original: str


class Item(NamedTuple):
    """Some pictures of the set `k`, and their originals where they are compared in pairs."""

    k: int
    part: FolderPart | ArrayPart
    originals: FolderPart | None = None


def key_of(name: str) -> str:
    """A file's name without its ending, by which a picture and its original find each other."""
    return split_ending(name)[0]


def find_pairs(images: Given, reference: Given, asked: bool | None) -> list[Pair]:
    """All pictures and their originals by key; none where they are not to be compared so.

    `asked` None: where both folders hold the same keys. Raises UsageError where it is asked for and cannot be.
    """
    if asked is False:
        return []
    if not isinstance(images, Folder) or not isinstance(reference, Folder):
        if asked:
            raise UsageError(
                "expected two folders for --pairs, found an .npz file, whose pictures have no names; unpack it"
            )
        return []
    mine, theirs = ({key_of(name): name for name in each.names} for each in (images, reference))
    alone = sorted(mine.keys() ^ theirs.keys())
    is_one_each = len(mine) == len(images.names) and len(theirs) == len(reference.names)
    if is_one_each and not alone:
        return [Pair(key, mine[key], theirs[key]) for key in sorted(mine)]
    found = f"{len(alone):,} that only one has, such as {alone[0]}" if alone else "several of one name"
    if asked:
        raise UsageError(
            f"expected the same names in {images.url} and {reference.url} for --pairs, found {found}; leave --pairs out"
        )
    if mine.keys() & theirs.keys():
        logger.info("not compared in pairs: expected the same names in both folders, found %s", found)
    return []


def names_to_read(
    images: Given, reference: Given | None, pairs: Sequence[Pair], count: int | None
) -> dict[int, list[str]]:
    """Names of the pictures that enter GIVEN and ORIGINAL, at most `count`: of pairs both."""
    if pairs:
        chosen = set(choose_keys([pair.key for pair in pairs], count))
        kept = [pair for pair in pairs if pair.key in chosen]
        return {GIVEN: [pair.name for pair in kept], ORIGINAL: [pair.original for pair in kept]}
    of_reference = reference.names if reference is not None else []
    return {GIVEN: sorted(choose_keys(images.names, count)), ORIGINAL: sorted(choose_keys(of_reference, count))}


def items(images: Given, reference: Given, pairs: Sequence[Pair], names: Mapping[int, Sequence[str]]) -> Iterator[Item]:
    """All `pairs` or, without any, the pictures `names` of both places, in parts."""
    if not pairs:
        for k, place in ((ORIGINAL, reference), (GIVEN, images)):
            yield from (Item(k, part) for part in (place.parts(names[k]) if names[k] else ()))
        return
    both = images.parts([pair.name for pair in pairs]), reference.parts([pair.original for pair in pairs])
    for part, originals in zip(*both, strict=True):
        assert isinstance(originals, FolderPart)
        yield Item(GIVEN, part, originals)
