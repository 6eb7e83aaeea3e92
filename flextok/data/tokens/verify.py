"""Whether a token store is whole, and true to its manifest and corpus."""

from typing import Any

import pyarrow as pa

from flextok import storage
from flextok.data.tokens.files import StoredShard, flat_rows, read_manifest, read_shard_footer, read_shard_table
from flextok.data.tokens.schema import WHOLE_VIEW, ContentHash, range_fault, token_schema
from flextok.digests import digest_rows
from flextok.errors import FlextokError, IntegrityError


def verify_tokens(url: str, corpus_url: str | None = None) -> list[str]:
    """What is wrong with the token store `url`, one line each; empty when it holds.

    Checked: every shard of the manifest is there and no other, file and row hashes, row counts, schema, ids within
    the vocabulary or finite values, one tokenizer, unique keys, the digest. With `corpus_url` also: every shard of the corpus has its
    tokens, made from the same bytes, and key, label and image hash of each row are those of the corpus, in its order,
    nothing missing but the listed rejects.
    """
    url = storage.absolute(url)
    manifest = read_manifest(url)
    problems: list[str] = []
    seen: set[tuple[str, str]] = set()
    triples = []
    first: StoredShard | None = None
    for entry in manifest["shards"]:
        name = entry["shard"]
        shard_url = storage.join(url, f"{name}.parquet")
        try:
            shard = read_shard_footer(shard_url)
            table = read_shard_table(shard_url)
        except FileNotFoundError:
            problems.append(f"shard {name}: missing")
            continue
        except (IntegrityError, OSError) as error:
            problems.append(f"shard {name}: not readable ({error})")
            continue
        first = first or shard
        if shard.meta.identity() != first.meta.identity():
            problems.append(f"shard {name}: made by another tokenizer or with other settings than {first.name}")
        problems += [f"shard {name}: {fault}" for fault in _shard_faults(shard, table, entry)]
        views = table["view"].to_pylist() if shard.has_views else [WHOLE_VIEW] * table.num_rows
        pairs = list(zip(table["key"].to_pylist(), views, strict=True))
        repeated = len(pairs) - len(set(pairs)) + len(seen.intersection(pairs))
        if repeated:
            problems.append(f"shard {name}: {repeated} keys occur more than once in the store")
        seen.update(pairs)
        content = ContentHash(shard.meta)
        content.update(table)
        triples.append((name, table.num_rows, content.hexdigest()))
    problems += _manifest_faults(url, manifest, triples)
    if corpus_url is not None and not problems:
        problems += _corpus_faults(url, manifest, corpus_url)
    return problems


def _shard_faults(shard: StoredShard, table: pa.Table, entry: dict[str, Any]) -> list[str]:
    faults = []
    expected = token_schema(shard.meta, views=shard.has_views)
    if not table.schema.equals(expected):
        faults.append(
            f"expected the columns {expected.names} of a token shard, found {table.schema.names} or other types"
        )
        return faults
    if table.num_rows != entry["rows"]:
        faults.append(f"expected {entry['rows']} rows, found {table.num_rows}")
    if shard.meta.source_sha256 != entry["source_sha256"]:
        faults.append("made from another source shard than the manifest says")
    file_sha256 = storage.sha256_file(shard.url)
    if file_sha256 != entry["sha256"]:
        faults.append(f"file hash is {file_sha256[:12]}, the manifest says {entry['sha256'][:12]}")
    if fault := range_fault(shard.meta, flat_rows(table[shard.meta.column], shard.meta.ids_per_row)):
        faults.append(fault)
    lengths = table["length"].to_numpy()
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= shard.meta.num_tokens):
        faults.append(f"expected lengths in 1..{shard.meta.num_tokens}, found {lengths.min()}..{lengths.max()}")
    return faults


def _manifest_faults(url: str, manifest: dict[str, Any], triples: list[tuple[str, int, str]]) -> list[str]:
    """Faults of the whole: files that are not in the manifest, counts and digest that do not follow from the rows."""
    problems = []
    listed = {f"{entry['shard']}.parquet" for entry in manifest["shards"]}
    strangers = [name for name in storage.list_names(url) if name.endswith(".parquet") and name not in listed]
    problems += [f"{name}: not in the manifest" for name in strangers]
    counts = manifest["counts"]
    if len(triples) != counts["shards"]:
        problems.append(f"expected {counts['shards']} shards, found {len(triples)} readable ones")
    elif digest_rows(triples) != manifest["digest"]:
        problems.append(
            f"digest of the rows is {digest_rows(triples)[:12]}, the manifest says {manifest['digest'][:12]}"
        )
    rows = sum(count for _, count, _ in triples)
    if rows != counts["rows"]:
        problems.append(f"expected {counts['rows']} rows, found {rows}")
    return problems


def _corpus_faults(url: str, manifest: dict[str, Any], corpus_url: str) -> list[str]:
    """Faults against the corpus: each row must be the corpus' sample in its place, save the rejects."""
    from flextok.data.corpus.reader import Corpus

    try:
        corpus = Corpus.open(corpus_url)
    except FlextokError as error:
        return [f"corpus: {error}"]
    problems = []
    entries = {entry["shard"]: entry for entry in manifest["shards"]}
    names = {shard.name.removesuffix(".tar") for shard in corpus.shards}
    problems += [f"shard {name}: in the corpus, but not tokenized" for name in sorted(names - entries.keys())]
    problems += [f"shard {name}: tokenized, but not in the corpus" for name in sorted(entries.keys() - names)]
    rejected = {reject["source"] for reject in manifest["rejects"]}
    index = corpus.index()
    for shard in corpus.shards:
        name = shard.name.removesuffix(".tar")
        if name not in entries:
            continue
        if entries[name]["source_sha256"] != shard.sha256:
            problems.append(f"shard {name}: the corpus holds other bytes ({shard.sha256[:12]}) than were tokenized")
            continue
        rows = index.filter(index["shard"] == shard.name)
        wanted = [
            (key, label, sha256)
            for key, label, sha256 in zip(rows["key"], rows["label"], rows["sha256"], strict=True)
            if key not in rejected
        ]
        table = read_shard_table(storage.join(url, f"{name}.parquet"))
        found = dict.fromkeys(
            zip(
                table["key"].to_pylist(),
                table["label"].to_pylist(),
                [None if value is None else value.hex() for value in table["sha256"].to_pylist()],
                strict=True,
            )
        )
        if list(found) != wanted:
            wrong = [key for key, *_ in set(wanted).symmetric_difference(found)][:3]
            problems.append(
                f"shard {name}: expected the corpus' {len(wanted)} samples in their order, found {len(found)}; "
                f"keys, labels or hashes differ, for instance at {wrong or 'the order'}"
            )
    return problems
