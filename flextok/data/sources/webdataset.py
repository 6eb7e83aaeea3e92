"""WebDataset tars, also img2dataset's with their sidecars `<tar>.parquet` and `<tar>_stats.json`."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.rejects import Reject
from flextok.data.sources.base import InputError, RawInput
from flextok.data.sources.containers import Container, list_containers
from flextok.data.sources.files import IMAGE_ENDINGS, read_range
from flextok.data.sources.listing import LISTING_SCHEMA, Listing
from flextok.data.sources.staging import Staging, decompressed, readable_at_random
from flextok.data.sources.tarreader import TarError, TarMember, tar_members
from flextok.digests import canonical_json

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST_FIELD = {"json": 1 << 20, "txt": 1 << 20, "cls": 1 << 10}
"""Bytes allowed for a sample's texts; they are held in memory and copied into its JSON."""
LISTED_AT_ONCE = 8
OWN_FIELDS = frozenset({"source", "sha256", "width", "height", "label", "label_name", "caption", "captions", "text"})
"""Fields of a sample's JSON that are written anew; the rest is carried along as `metadata`."""


@dataclass
class _Sample:
    key: str
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    fault: tuple[str, str] | None = None


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
        for part, most in LARGEST_FIELD.items():
            if part in parts and parts[part][1] > most:
                raise InputError("bad_metadata", f"{part} of {parts[part][1]} bytes, allowed {most}")
        try:
            content = self._read_parts(self.urls[note["tar"]], parts)
        except OSError as error:
            raise InputError("unreadable", storage.redact(error.strerror or str(error))) from None
        return _as_input(note["key"], content)

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
    names = {container.name for container in containers}
    sidecars = {reject.source: reject for reject in others if _tar_of(reject.source) in names}
    rejects = [reject for reject in others if reject.source not in sidecars]
    tars = [_plain(container, staging, rejects) for container in containers]
    with ThreadPoolExecutor(1 if storage.is_local(url) else LISTED_AT_ONCE) as pool:
        listed = list(pool.map(_list_tar, [tar for tar in tars if tar]))
    frames: list[pl.DataFrame] = []
    urls: list[str] = []
    for tar, (samples, faults) in zip([tar for tar in tars if tar], listed, strict=True):
        good, bad = _judged(tar.name, samples)
        rejects += faults + bad
        rejects += _compare_sidecars(url, tar.name, sidecars, samples, cut=bool(faults))
        frames.append(_frame(tar, len(urls), good))
        urls.append(tar.url)
    frame = pl.concat(frames) if frames else pl.DataFrame(schema=LISTING_SCHEMA)
    remote = any(not storage.is_local(one) for one in urls)
    return Listing(frame, TarReader(tuple(urls), remote), rejects, None, has_splits)


def _plain(container: Container, staging: Staging, rejects: list[Reject]) -> Container | None:
    """The container itself, or a local copy that can be read at random."""
    if container.size == 0 and not storage.exists(container.url):
        rejects.append(Reject(container.name, "unreadable", "not found"))
        return None
    try:
        if container.name.lower().endswith(".tar"):
            return replace(container, url=readable_at_random(container, staging))
        copy = decompressed(container, staging.file(container))
        return replace(container, url=str(copy), size=copy.stat().st_size)
    except (OSError, ValueError) as error:
        rejects.append(Reject(container.name, "bad_container", storage.redact(str(error))))
        return None


def _list_tar(tar: Container) -> tuple[list[_Sample], list[Reject]]:
    """Samples in order of their first member, and faults of the tar itself."""
    if tar.size == 0:
        return [], [Reject(tar.name, "bad_container", "0 bytes: an unfinished download?")]
    samples: list[_Sample] = []
    latest: dict[str, _Sample] = {}
    places: dict[str, tuple[int, int]] = {}
    faults: list[Reject] = []
    try:
        with storage.open_read(tar.url) as file:
            for member in tar_members(file, tar.size):
                if member.kind != "folder":
                    _take(member, samples, latest, places)
    except TarError as error:
        cut = samples and samples[-1].fault and samples[-1].fault[0] == "truncated_container"
        if not cut:
            reason = "truncated_container" if error.offset else "bad_container"
            faults.append(Reject(tar.name, reason, f"{error.detail}, at byte {error.offset} of {tar.size}"))
    except OSError as error:
        faults.append(Reject(tar.name, "unreadable", storage.redact(str(error))))
    if not samples and not faults:
        faults.append(Reject(tar.name, "empty_container", "a tar without members"))
    return samples, faults


def _take(
    member: TarMember, samples: list[_Sample], latest: dict[str, _Sample], places: dict[str, tuple[int, int]]
) -> None:
    parts = [part for part in member.name.split("/") if part != "."]
    stem, _, ext = parts[-1].partition(".") if parts[-1:] != [".."] else ("..", "", "")
    hidden = next((part for part in parts if part.startswith(".") and part != ".."), None)
    key = "/".join([*parts[:-1], stem if not hidden else parts[-1]])
    ext = ext.lower()
    sample = latest.get(key)
    if sample is None or ext in sample.parts:
        sample = _Sample(key)
        if key in latest:
            sample.fault = ("duplicate_key", f"key {key!r} occurs before in this tar")
        samples.append(sample)
        latest[key] = sample
    place = (member.offset, member.size)
    if member.kind == "hardlink" and member.link in places:
        place = places[member.link]
    elif member.kind != "file":
        sample.fault = ("unsafe_name", f"{member.name!r} is a link, a device or a sparse file")
    if member.name.startswith("/") or ".." in parts or "\\" in member.name:
        sample.fault = ("unsafe_name", f"{member.name!r} leads out of the tar")
    elif hidden:
        sample.fault = ("hidden_file", "left alone")
    elif not member.whole:
        sample.fault = ("truncated_container", f"the tar ends within {member.name}")
    sample.parts[ext] = place
    places[member.name] = place


def _judged(tar: str, samples: list[_Sample]) -> tuple[list[tuple[_Sample, str]], list[Reject]]:
    """Samples with the field of their picture, and rejects."""
    good, bad = [], []
    for sample in samples:
        image = _image_field(sample.parts)
        if sample.fault:
            bad.append(Reject(f"{tar}/{sample.key}", *sample.fault))
        elif image is None:
            bad.append(Reject(f"{tar}/{sample.key}", "missing_image", f"has only {', '.join(sorted(sample.parts))}"))
        else:
            good.append((sample, image))
    return good, bad


def _image_field(parts: dict[str, tuple[int, int]]) -> str | None:
    """The field that is named like a picture: `jpg` before `input.jpg`, then by name."""
    named = [ext for ext in parts if ext.rpartition(".")[2] in IMAGE_ENDINGS]
    return min(named, key=lambda ext: ("." in ext, ext), default=None)


def _frame(tar: Container, number: int, samples: list[tuple[_Sample, str]]) -> pl.DataFrame:
    names, bases, sizes, notes = [], [], [], []
    for sample, image in samples:
        parts = {"image": sample.parts[image]} | {k: sample.parts[k] for k in LARGEST_FIELD if k in sample.parts}
        names.append(f"{tar.name}/{sample.key}.{image}")
        bases.append(sample.key)
        sizes.append(sample.parts[image][1])
        notes.append(canonical_json({"tar": number, "key": sample.key, "parts": parts}))
    columns = {"name": names, "base": bases, "size": sizes, "stamp": [tar.stamp] * len(names), "where": notes}
    return pl.DataFrame(columns, schema=LISTING_SCHEMA)


def _as_input(key: str, content: dict[str, bytes]) -> RawInput:
    try:
        meta: Any = json.loads(content["json"]) if "json" in content else {}
        text = content["txt"].decode() if "txt" in content else None
        cls = content["cls"].decode().strip() if "cls" in content else ""
    except ValueError as error:
        raise InputError("bad_metadata", f"json, txt or cls: {error}") from None
    if not isinstance(meta, dict):
        raise InputError("bad_metadata", f"json: expected an object, found {type(meta).__name__}")
    captions = [text, meta.get("caption"), meta.get("text"), *_as_list(meta.get("captions"))]
    texts = [caption.strip() for caption in captions if isinstance(caption, str)]
    label: int | str | None = int(cls) if cls.lstrip("-").isdecimal() else cls or None
    if label is None and isinstance(meta.get("label"), int):
        label = meta["label"]
    if isinstance(label, int) and label < 0:
        label = None
    extra = {name: value for name, value in meta.items() if name not in OWN_FIELDS}
    keys = (*([cls] if cls else []), key, key.rpartition("/")[2])
    return RawInput(content["image"], label, keys, tuple(dict.fromkeys(texts)), extra)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _tar_of(name: str) -> str | None:
    """The tar whose img2dataset sidecar `name` would be."""
    for ending in ("_stats.json", ".parquet"):
        if name.endswith(ending):
            return name.removesuffix(ending) + ".tar"
    return None


def _compare_sidecars(
    url: str, tar: str, sidecars: dict[str, Reject], samples: list[_Sample], cut: bool
) -> Iterator[Reject]:
    """What img2dataset's records of a tar say about inputs that are not in it."""
    table, stats = tar.removesuffix(".tar") + ".parquet", tar.removesuffix(".tar") + "_stats.json"
    here = {sample.key.rpartition("/")[2] for sample in samples}
    try:
        if table in sidecars:
            with storage.open_read(storage.join(url, table)) as file:
                yield from _compare_table(tar, pq.ParquetFile(file), here, cut)
        elif stats in sidecars and not cut:
            expected = int(storage.read_json(storage.join(url, stats))["successes"])
            if expected > len(here):
                yield Reject(tar, "truncated_container", f"{expected} samples by its stats file, found {len(here)}")
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        yield Reject(table if table in sidecars else stats, "bad_metadata", storage.redact(str(error)))


def _compare_table(tar: str, table: pq.ParquetFile, here: set[str], cut: bool) -> Iterator[Reject]:
    if not {"key", "status"} <= set(table.schema_arrow.names):
        return
    columns = [name for name in ("key", "status", "error_message") if name in table.schema_arrow.names]
    for batch in table.iter_batches(batch_size=4096, columns=columns):
        for row in batch.to_pylist():
            if row["status"] != "success":
                detail = f"{row['status']}: {storage.redact(str(row.get('error_message')))}"
                yield Reject(f"{tar}/{row['key']}", "not_downloaded", detail)
            elif str(row["key"]) not in here and not cut:
                yield Reject(f"{tar}/{row['key']}", "missing_image", "recorded as a success, not in the tar")
