"""WebDataset tars, also img2dataset's with their records beside them. Which members make a sample: see `stems`."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import polars as pl

from flextok import storage
from flextok.data.config import CorpusConfig, SourceConfig
from flextok.data.rejects import Reject
from flextok.data.sources.base import InputError, RawInput
from flextok.data.sources.containers import Container, containers_digest, list_containers
from flextok.data.sources.files import read_range
from flextok.data.sources.img2dataset import compare_records, records_by_shard
from flextok.data.sources.listing import VIEWS_SCHEMA, Listing
from flextok.data.sources.look import Look
from flextok.data.sources.registry import SOURCES, SourceFormat
from flextok.data.sources.staging import OPENERS, Staging, decompressed, opener_of, readable_at_random
from flextok.data.sources.tarreader import TarError, TarMember, tar_members
from flextok.data.sources.tarsamples import TarContent, TarInput, sort_members
from flextok.data.sources.texts import check_text_sizes, with_texts
from flextok.digests import canonical_json, digest_of

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LISTED_AT_ONCE = 8


@dataclass(frozen=True)
class TarReader:
    """Reads the members of one sample in as few requests as their places in the tar allow."""

    urls: tuple[str, ...]
    remote: bool

    def read(self, name: str, size: int, where: str | None, max_bytes: int) -> RawInput:
        """See Reader."""
        note = json.loads(where or "{}")
        parts: dict[str, list[int]] = note["parts"]
        if size > max_bytes:
            raise InputError("too_many_bytes", f"{size} bytes, allowed {max_bytes}")
        check_text_sizes({kind: size for kind, (_, size) in parts.items() if kind != "image"})
        try:
            content = self._read_parts(self.urls[note["tar"]], parts)
        except OSError as error:
            raise InputError("unreadable", storage.redact(error.strerror or str(error))) from None
        key, view = note["key"], note.get("view", "")
        return with_texts(content.pop("image"), content, (key, key.rpartition("/")[2]), view)

    def _read_parts(self, url: str, parts: dict[str, list[int]]) -> dict[str, bytes]:
        start = min(offset for offset, _ in parts.values())
        end = max(offset + size for offset, size in parts.values())
        if end - start <= sum(size for _, size in parts.values()) + 4096 * len(parts):
            block = read_range(url, start, end)
            return {part: block[offset - start : offset - start + size] for part, (offset, size) in parts.items()}
        return {part: read_range(url, offset, offset + size) for part, (offset, size) in parts.items()}


def list_webdataset(url: str, split: str, staging: Staging) -> Listing:
    """The samples of all tars of a split, found from their headers. Raises UsageError."""
    containers, others, has_splits = list_containers(url, split, ENDINGS)
    rejects = {reject.source: reject for reject in others}
    faults: list[Reject] = []
    tars = [tar for container in containers if (tar := _plain(container, staging, faults))]
    with ThreadPoolExecutor(1 if storage.is_local(url) else LISTED_AT_ONCE) as pool:
        listed = list(pool.map(_list_tar, tars))
    records = records_by_shard(rejects)
    frames: list[pl.DataFrame] = []
    fields = 0
    for number, (tar, (content, broken)) in enumerate(zip(tars, listed, strict=True)):
        faults += broken + [Reject(f"{tar.name}/{source}", *why) for source, *why in content.rejects]
        shard = tar.name.removesuffix(".tar")
        if shard in records:
            keys = {stem.rpartition("/")[2] for stem in content.stems}
            missing, used = compare_records(url, shard, records[shard], tar.name, keys, cut=bool(broken))
            faults += missing
            fields += len(used)
            for name in used | {reject.source for reject in missing}:
                rejects.pop(name, None)
        fields += content.fields
        frames.append(_frame(tar, number, content.inputs))
    frame = pl.concat(frames) if frames else pl.DataFrame(schema=VIEWS_SCHEMA)
    remote = any(not storage.is_local(tar.url) for tar in tars)
    reader = TarReader(tuple(tar.url for tar in tars), remote)
    return Listing(frame, reader, faults + list(rejects.values()), None, has_splits, fields)


def _plain(container: Container, staging: Staging, rejects: list[Reject]) -> Container | None:
    """The container itself, or a copy that can be read at random."""
    if container.size == 0 and not storage.exists(container.url):
        rejects.append(Reject(container.name, "unreadable", "not found"))
        return None
    try:
        # What is called `.tar` is one: a store with thousands is not asked about each.
        opener = None if container.name.lower().endswith(".tar") else opener_of(container.url)
        if opener is None:
            return replace(container, url=readable_at_random(container, staging))
        copy = decompressed(container, opener, staging.file(container))
        return replace(container, url=copy, size=storage.size(copy))
    except (OSError, ValueError) as error:
        rejects.append(Reject(container.name, "bad_container", storage.redact(str(error))))
        return None


def _list_tar(tar: Container) -> tuple[TarContent, list[Reject]]:
    """What is in a tar, and the faults of the tar itself."""
    if tar.size == 0:
        return TarContent(), [Reject(tar.name, "bad_container", "0 bytes: an unfinished download?")]
    members: list[TarMember] = []
    faults: list[Reject] = []
    try:
        with storage.open_read(tar.url) as file:
            for member in tar_members(file, tar.size):
                if member.kind != "folder":
                    members.append(member)
    except TarError as error:
        reason = "truncated_container" if error.offset else "bad_container"
        faults.append(Reject(tar.name, reason, f"{error.detail}, at byte {error.offset} of {tar.size}"))
    except OSError as error:
        faults.append(Reject(tar.name, "unreadable", storage.redact(str(error))))
    if not members and not faults:
        faults.append(Reject(tar.name, "empty_container", "a tar without members"))
    return sort_members(members), faults


def _frame(tar: Container, number: int, inputs: list[TarInput]) -> pl.DataFrame:
    rows = []
    for one in inputs:
        note = {"tar": number, "key": one.stem, "parts": {"image": one.image, **one.texts}}
        base, stamp = one.stem, tar.stamp
        if one.view:
            note["view"] = one.view
            base = f"{one.stem}/{one.view}"
        if one.far_texts:
            # Earlier versions took less from such a sample: its shard is made again.
            stamp = digest_of([tar.stamp, one.view, sorted(one.texts)])[:16]
        group = None if one.group is None else f"{tar.name}/{one.group}"
        name = f"{tar.name}/{one.path}"
        rows.append((name, base, one.image[1], stamp, canonical_json(note), one.fields, group))
    return pl.DataFrame(rows, schema=VIEWS_SCHEMA, orient="row")


class WebDatasetFormat(SourceFormat):
    """Tars whose members of one stem make a sample."""

    name = "webdataset"
    asked = 1

    def detects(self, look: Look) -> bool:
        if look.file is not None:
            is_tar = look.start[257:262] == b"ustar" or look.start.startswith(tuple(OPENERS))
            return is_tar or look.file_ends(ENDINGS)
        return look.count(ENDINGS) > look.pictures

    def list(self, source: SourceConfig, split: str, config: CorpusConfig, staging: Staging) -> Listing:
        return list_webdataset(source.url, split, staging)

    def digest(self, source: SourceConfig, split: str, config: CorpusConfig) -> str:
        return containers_digest(source.url, split, ENDINGS)


SOURCES.add("webdataset", WebDatasetFormat())
