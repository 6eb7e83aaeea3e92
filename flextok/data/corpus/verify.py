"""`verify_corpus`: everything under a corpus re-hashed and re-counted against its manifest."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.corpus.crops import Undecodable, check_hash
from flextok.data.corpus.layout import MANIFEST, corpus_root, index_url, shard_url
from flextok.data.corpus.manifest import FORMAT, REJECTS_TABLE, SHARDS_TABLE, corpus_digest
from flextok.data.corpus.reader import Shard, iter_shard
from flextok.digests import digest_of
from flextok.errors import FlextokError, IntegrityError
from flextok.runtime.lock import LOCK_FILE

Problems = list[str]


def verify_corpus(url: str) -> list[str]:
    """The problems of the corpus at `url`, one line each; an empty list when it is as its manifest says.

    Reads every byte: each shard against its hash, each sample against its own hash and the index, each table against
    the manifest, and looks for files that do not belong. Memory: one sample and one shard's index at a time.
    """
    root = corpus_root(url)
    manifest, problems = _read_manifest(root)
    if manifest is None:
        return problems
    shards = _read_shards(root, manifest, problems)
    for name, sha256 in manifest["files"].items():
        _check_file(root, name, sha256, problems)
    for shard in shards:
        _check_shard(root, shard, problems)
    _check_counts(root, manifest, shards, problems)
    _check_extra(root, manifest, shards, problems)
    return problems


def _read_manifest(root: str) -> tuple[dict[str, Any] | None, Problems]:
    where = storage.join(root, MANIFEST)
    if not storage.exists(where):
        return None, [f"{MANIFEST}: missing, so this is no finished corpus; run the command that makes it again"]
    try:
        manifest = storage.read_json(where)
    except FlextokError as error:
        return None, [f"{MANIFEST}: {error}"]
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None, [f"{MANIFEST}: expected format {FORMAT}, found something else"]
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    if manifest.get("checksum") != digest_of(content):
        return manifest, [f"{MANIFEST}: changed since it was written (its checksum does not hold)"]
    return manifest, []


def _read_shards(root: str, manifest: dict[str, Any], problems: Problems) -> list[Shard]:
    try:
        with storage.open_read(storage.join(root, SHARDS_TABLE)) as file:
            rows = pq.read_table(file).to_pylist()
        shards = [Shard(r["shard"], shard_url(root, r["shard"]), r["samples"], r["bytes"], r["sha256"]) for r in rows]
    except (OSError, KeyError, pa.ArrowException):
        return []  # named by the check of the file itself
    digest = corpus_digest(((shard.name, shard.samples, shard.sha256) for shard in shards), manifest["sources"])
    if digest != manifest["digest"]:
        problems.append(
            f"{SHARDS_TABLE}: belongs to another corpus: it gives digest {digest[:12]}, {MANIFEST} says {manifest['digest'][:12]}"
        )
    return shards


def _check_file(root: str, name: str, sha256: str, problems: Problems) -> None:
    try:
        found = storage.sha256_file(storage.join(root, name))
    except FileNotFoundError:
        problems.append(f"{name}: missing")
        return
    if found != sha256:
        problems.append(f"{name}: changed since it was written (sha256 {found[:12]}, expected {sha256[:12]})")


def _check_shard(root: str, shard: Shard, problems: Problems) -> None:
    name = f"shards/{shard.name}.tar"
    if not storage.exists(shard.url):
        problems.append(f"{name}: missing")
        return
    size = storage.size(shard.url)
    if size != shard.bytes:
        problems.append(
            f"{name}: {'truncated' if size < shard.bytes else 'grown'} to {size} bytes, expected {shard.bytes}"
        )
        return
    try:
        with storage.open_read(index_url(root, shard.name)) as file:
            index = {row["key"]: row for row in pq.read_table(file).to_pylist()}
    except (OSError, KeyError, pa.ArrowException):
        index = None  # named by the check of the file itself
    try:
        for sample in iter_shard(root, shard):
            recorded = sample.meta.get("sha256", "")
            if isinstance(check_hash(sample.image, recorded), Undecodable):
                problems.append(f"{name}: sample {sample.key} does not have the hash its JSON says")
            elif index is not None and index.get(sample.key, {}).get("sha256") != recorded:
                problems.append(f"{name}: sample {sample.key} is not the one in index/{shard.name}.parquet")
    except IntegrityError:
        found = storage.sha256_file(shard.url)
        problems.append(f"{name}: changed since it was written (sha256 {found[:12]}, expected {shard.sha256[:12]})")


def _check_counts(root: str, manifest: dict[str, Any], shards: list[Shard], problems: Problems) -> None:
    counts = manifest["counts"]
    try:
        with storage.open_read(storage.join(root, REJECTS_TABLE)) as file:
            rejects = pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException):
        return  # named by the check of the file itself
    found = {"samples": sum(shard.samples for shard in shards), "shards": len(shards), "rejects": rejects}
    for name, count in found.items():
        if count != counts[name]:
            problems.append(f"{MANIFEST}: counts {counts[name]} {name}, found {count}")
    if counts["samples"] + counts["rejects"] != counts["inputs"]:
        problems.append(
            f"{MANIFEST}: {counts['inputs']} inputs are not {counts['samples']} samples + {counts['rejects']} rejects"
        )
    # Earlier versions did not count members.
    if "members" in counts and counts["inputs"] + counts["fields"] != counts["members"]:
        problems.append(
            f"{MANIFEST}: {counts['members']} members are not {counts['inputs']} inputs + {counts['fields']} fields"
        )


def _check_extra(root: str, manifest: dict[str, Any], shards: list[Shard], problems: Problems) -> None:
    known = {MANIFEST, LOCK_FILE, *manifest["files"], *(f"shards/{shard.name}.tar" for shard in shards)}
    fs, path = storage.filesystem(root)
    prefix = path.rstrip("/") + "/"
    extra = sorted(name.removeprefix(prefix) for name in fs.find(path))
    problems += [f"{name}: extra file, not in the manifest" for name in extra if name not in known]
