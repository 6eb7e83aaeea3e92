"""From the members of a tar to its samples: every member becomes a picture, a field of one, or a counted reject."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from flextok.data.rejects import Reject
from flextok.data.sources.files import IMAGE_ENDINGS
from flextok.data.sources.stems import (
    TEXT_KINDS,
    index_texts,
    name_views,
    names_above,
    root_of,
    split_ending,
    stem_of,
    texts_of,
)
from flextok.data.sources.tarreader import TarMember

ByteRange = tuple[int, int]
"""Offset and size within the tar."""


class TarInput(NamedTuple):
    """A picture of a tar and the texts that belong to it."""

    path: str
    """Of its member, or with its ending in lower case where it is the only picture of its stem."""
    stem: str
    view: str
    """Name among the pictures of its stem; "" for the only one and for the plain one."""
    image: ByteRange
    texts: dict[str, ByteRange]
    """By kind."""
    far_texts: bool
    """Whether it is used with texts or in a way that the stem alone does not tell: see `webdataset`'s stamps."""
    group: str | None
    """Root of the texts it shares with other views; None when it shares none."""
    fields: int
    """How many members go with it that no picture before it is counted with."""


@dataclass
class TarContent:
    """What a tar holds: `len(inputs) + len(rejects) + fields` and the inputs' own fields make up all its members."""

    inputs: list[TarInput] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    """Sources are relative to the tar."""
    fields: int = 0
    """Members that belong to rejects."""
    stems: set[str] = field(default_factory=set)


class _Entry(NamedTuple):
    path: str
    place: ByteRange
    fault: tuple[str, str] | None

    @property
    def name(self) -> str:
        return split_ending(self.path)[0]


def sort_members(members: Iterable[TarMember]) -> TarContent:
    """The samples and rejects that `members` (without folders) make up; their order decides nothing but which of several
    members of one name is the first.

    A name that occurs again begins another copy of its stem, to which all later members of the stem belong. Copies are
    rejected, except for pictures with a name that has not occurred yet.
    """
    content = TarContent()
    places: dict[str, ByteRange] = {}
    stems: dict[str, list[dict[str, _Entry]]] = {}
    for member in members:
        stem, entry = _entry(member, places)
        copies = stems.setdefault(stem, [{}])
        if entry.path in copies[-1]:
            copies.append({})
        copies[-1][entry.path] = entry
    for stem, copies in stems.items():
        content.stems.add(stem)
        _judge(stem, copies, content)
    return content


def _entry(member: TarMember, places: dict[str, ByteRange]) -> tuple[str, _Entry]:
    """A member under its stem, with what is wrong about it."""
    parts: list[str] = []
    path, hidden = member.name, False
    if path.startswith(".") or "/." in path:
        parts = [part for part in path.split("/") if part != "."]
        hidden = any(part.startswith(".") and part != ".." for part in parts)
        path = "/".join(parts)
    fault, place = None, (member.offset, member.size)
    if member.kind == "hardlink" and member.link in places:
        place = places[member.link]
    elif member.kind != "file":
        fault = ("unsafe_name", f"{member.name!r} is a link, a device or a sparse file")
    if member.name.startswith("/") or ".." in parts or "\\" in member.name:
        fault = ("unsafe_name", f"{member.name!r} leads out of the tar")
    elif hidden:
        fault = ("hidden_file", "left alone")
    elif not member.whole:
        fault = ("truncated_container", f"the tar ends within {member.name}")
    places[member.name] = place
    return path if hidden or parts[-1:] == [".."] else stem_of(path), _Entry(path, place, fault)


def _judge(stem: str, copies: list[dict[str, _Entry]], content: TarContent) -> None:
    """Adds one stem to `content`."""
    members = dict(copies[0])
    for copy in copies[1:]:
        fresh = [path for path in _pictures(copy) if path not in members]
        members |= {path: copy.pop(path) for path in fresh}
        _refuse(stem, copy, ("duplicate_key", f"key {stem!r} occurs before in this tar"), content)
    pictures = sorted(_pictures(members))
    if not pictures:
        endings = ", ".join(sorted(path[len(stem) + 1 :].lower() or "a name without ending" for path in members))
        _refuse(stem, members, ("missing_image", f"has only {endings}"), content)
        return
    several = len(pictures) > 1
    views = name_views(stem, pictures) if several else {pictures[0]: ""}
    others = sorted(path for path in members if path not in views)
    index = index_texts(others)
    faults: dict[str, list[str]] = {}
    for path in others:
        if members[path].fault:
            faults.setdefault(members[path].name, []).append(path)
    roots = {path: root_of(members[path].name, index) for path in pictures} if several else {}
    shared = {root for root, count in Counter(roots.values()).items() if count > 1}
    counted: set[str] = set()
    for path in pictures:
        entry = members[path]
        texts = texts_of(entry.name, index)
        faulty = [other for above in names_above(entry.name) for other in faults.get(above, [])]
        fresh = {*texts.values(), *faulty} - counted
        counted |= fresh
        fault = entry.fault or next((members[other].fault for other in faulty), None)
        if fault:
            content.rejects.append(Reject(path if several else stem, *fault))
            content.fields += len(fresh)
            continue
        places = {kind: members[text].place for kind, text in texts.items()}
        far = several or any(text[len(stem) + 1 :].lower() != kind for kind, text in texts.items())
        name = path if several else stem + path[len(stem) :].lower()
        root = roots.get(path)
        group = root if root in shared else None
        content.inputs.append(TarInput(name, stem, views[path], entry.place, places, far, group, len(fresh)))
    _reject_unused([members[path] for path in others if path not in counted], pictures, content)


def _refuse(stem: str, members: dict[str, _Entry], reason: tuple[str, str], content: TarContent) -> None:
    """Rejects what is no sample: a row for each picture, or one for all when there is none; the rest are its fields."""
    if not members:
        return
    pictures = _pictures(members)
    if len(pictures) > 1:
        rows = [(path, members[path].fault or reason) for path in pictures]
    else:
        faults = (members[path].fault for path in sorted(members))
        rows = [(stem, next((fault for fault in faults if fault), reason))]
    content.rejects += [Reject(source, *why) for source, why in rows]
    content.fields += len(members) - len(rows)


def _reject_unused(entries: list[_Entry], pictures: list[str], content: TarContent) -> None:
    """A row for each member of a stem with pictures that is neither one nor a field of one."""
    if not entries:
        return
    above = {name for path in pictures for name in names_above(split_ending(path)[0])}
    for entry in entries:
        if entry.fault:
            reason, detail = entry.fault
        elif split_ending(entry.path)[1] not in TEXT_KINDS:
            reason, detail = "unused_field", f"not one of {', '.join(TEXT_KINDS)}"
        elif entry.name in above:
            reason, detail = "unused_field", "its pictures have nearer ones"
        else:
            reason, detail = "unused_field", f"not named like a picture of its stem: {', '.join(pictures[:3])}"
        content.rejects.append(Reject(entry.path, reason, detail))


def _pictures(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if split_ending(path)[1] in IMAGE_ENDINGS]
