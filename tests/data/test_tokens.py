"""Token shards and stores: round trips, other readers, refusals, streams."""

import dataclasses
import shutil
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from flextok.data.rejects import Reject
from flextok.data.tokens import (
    ContentHash,
    TokenMeta,
    TokenStore,
    token_schema,
    token_table,
    verify_tokens,
    write_token_manifest,
    write_token_shard,
)
from flextok.data.tokens import writer as token_writer
from flextok.errors import IntegrityError, UsageError

META = TokenMeta(tokenizer="a" * 64, vocab_size=64_000, num_tokens=8, preprocess={"crop": "adm_center", "size": 32})


def make_table(meta: TokenMeta, rows: int, seed: int, prefix: str = "k") -> pa.Table:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, meta.vocab_size, (rows, meta.num_tokens, meta.codebooks))
    columns = {
        "key": [f"{prefix}{seed}-{row:05d}" for row in range(rows)],
        "label": [None if row % 3 == 0 else row % 7 for row in range(rows)],
        "text": [None if row % 2 else f"ein Bild, № {row}" for row in range(rows)],
        "width": [32] * rows,
        "height": [24] * rows,
        "sha256": [None if row == 1 else rng.bytes(32) for row in range(rows)],
    }
    return token_table(token_schema(meta), ids, columns)


def make_store(folder: Path, meta: TokenMeta = META, sizes: tuple[int, ...] = (50, 37, 0, 64), prefix="k") -> str:
    records = []
    for number, rows in enumerate(sizes):
        table = make_table(dataclasses.replace(meta, source=f"{number:06d}"), rows, number, prefix)
        records.append(write_token_shard(f"{folder}/{number:06d}.parquet", table.schema, [table]))
    write_token_manifest(str(folder), "tokens", records, meta, [], {})
    return str(folder)


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(token_writer, "ROW_GROUP_ROWS", 16)


def test_other_readers_see_the_contracts_columns(tmp_path):
    """pyarrow, polars and DuckDB read the shards with no code of ours."""
    url = make_store(tmp_path / "t")
    expected = pa.concat_tables(
        [make_table(META, rows, n).replace_schema_metadata() for n, rows in enumerate((50, 37, 0, 64))]
    )
    schema = pq.read_schema(f"{url}/000000.parquet")
    assert schema.field("tokens").type == pa.list_(pa.uint16(), 8)
    assert [field.name for field in schema if not field.nullable] == ["key", "tokens", "length"]
    assert schema.metadata[b"flextok.vocab_size"] == b"64000"
    assert schema.metadata[b"flextok.preprocess"] == b'{"crop": "adm_center", "size": 32}'
    frame = pl.read_parquet(f"{url}/*.parquet")
    assert frame["tokens"].to_list() == expected["tokens"].to_pylist()
    assert frame["text"].to_list() == expected["text"].to_pylist()
    rows = duckdb.sql(f"select key, tokens, sha256 from '{url}/*.parquet' order by key").fetchall()
    assert [list(row[1]) for row in rows] == expected["tokens"].to_pylist()


def test_store_gives_back_what_was_written(tmp_path, small_groups):
    url = make_store(tmp_path / "t")
    store = TokenStore.open(url)
    tables = [make_table(META, rows, n).replace_schema_metadata() for n, rows in enumerate((50, 37, 0, 64))]
    expected = pa.concat_tables(tables)
    ids = np.array(expected["tokens"].to_pylist(), np.uint16)
    assert len(store) == 151
    assert (store.num_tokens, store.vocab_size, store.codebooks) == (8, 64_000, 1)
    np.testing.assert_array_equal(store.ids(), ids)
    np.testing.assert_array_equal(store.ids(keep=3), ids[:, :3])
    assert store.keys() == expected["key"].to_pylist()
    assert store.labels().tolist() == [-1 if label is None else label for label in expected["label"].to_pylist()]
    assert store.to_arrow().replace_schema_metadata().equals(expected)
    cut = store.to_arrow(keep=2)
    assert cut.schema.metadata[b"flextok.num_tokens"] == b"2"
    assert cut["tokens"].to_pylist() == ids[:, :2].tolist()
    for row in (0, 15, 16, 49, 50, 86, 87, 150, -1):
        found = store[row]
        np.testing.assert_array_equal(found.ids, ids[row])
        assert store.find(found.key) == row % 151
    with pytest.raises(IndexError):
        store[151]
    with pytest.raises(KeyError):
        store.find("no such key")
    with pytest.raises(ValueError, match=r"1\.\.8, got 9"):
        store.ids(keep=9)


def test_several_codebooks_and_wide_vocabulary(tmp_path):
    meta = dataclasses.replace(META, vocab_size=100_000, codebooks=2, num_tokens=3)
    store = TokenStore.open(make_store(tmp_path / "t", meta, (10,)))
    table = make_table(meta, 10, 0)
    assert table.schema.field("tokens").type == pa.list_(pa.uint32(), 6)
    assert store.ids().shape == (10, 3, 2)
    assert store.ids(keep=2).reshape(10, -1).tolist() == [row[:4] for row in table["tokens"].to_pylist()]
    assert store[4].ids.shape == (3, 2)


def test_content_hash_depends_on_rows_only(tmp_path):
    """Any chunking gives one hash; any changed value, order, null or tokenizer gives another."""

    def digest(table: pa.Table, meta: TokenMeta = META, sizes: tuple[int, ...] = (1000,)) -> str:
        content, start = ContentHash(meta), 0
        for size in sizes:
            content.update(table.slice(start, size))
            start += size
        return content.hexdigest()

    table = make_table(META, 60, 0)
    whole = digest(table)
    assert digest(table, sizes=(7, 0, 1, 52)) == whole
    assert digest(table, dataclasses.replace(META, code_version="other", batch_size=9, fingerprint="x")) == whole
    assert digest(table, dataclasses.replace(META, tokenizer="b" * 64)) != whole
    assert digest(table.slice(0, 59)) != whole
    assert digest(table.take([*range(58), 59, 58])) != whole
    changes = {"key": ["other"], "label": [None], "text": [""], "width": [None], "sha256": [b"0" * 32], "length": [7]}
    for name, value in changes.items():
        field = table.schema.field(name)
        column = pa.chunked_array([table[name].slice(0, 59).combine_chunks(), pa.array(value, field.type)])
        changed = table.set_column(table.schema.get_field_index(name), field, column)
        assert digest(changed) != whole, name


def test_writer_failing_midway_leaves_nothing(tmp_path):
    def tables():
        yield make_table(META, 5, 0)
        raise OSError("the source broke")

    with pytest.raises(OSError, match="broke"):
        write_token_shard(str(tmp_path / "x.parquet"), token_schema(META), tables())
    assert list(tmp_path.iterdir()) == []


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(IntegrityError, match=r"0\.\.63999, found 0\.\.64000"):
        token_table(token_schema(META), np.array([[0] * 7 + [64_000]]), {"key": ["a"]})


def test_verify_holds_and_finds_each_fault(tmp_path, small_groups):
    url = make_store(tmp_path / "good")
    assert verify_tokens(url) == []

    def broken(name: str) -> Path:
        return Path(shutil.copytree(url, tmp_path / name))

    folder = broken("missing")
    (folder / "000001.parquet").unlink()
    assert any("000001: missing" in line for line in verify_tokens(str(folder)))
    with pytest.raises(IntegrityError, match="000001"):
        TokenStore.open(str(folder))

    folder = broken("bitrot")
    content = bytearray((folder / "000003.parquet").read_bytes())
    content[200] ^= 1
    (folder / "000003.parquet").write_bytes(content)
    assert any("000003" in line for line in verify_tokens(str(folder)))

    folder = broken("cut")
    (folder / "000000.parquet").write_bytes((folder / "000000.parquet").read_bytes()[:-100])
    assert any("000000: not readable" in line for line in verify_tokens(str(folder)))
    with pytest.raises(IntegrityError, match="damage"):
        TokenStore.open(str(folder))

    folder = broken("extra")
    shutil.copy(folder / "000000.parquet", folder / "000009.parquet")
    assert verify_tokens(str(folder)) == ["000009.parquet: not in the manifest"]

    folder = broken("swapped")
    other = make_table(dataclasses.replace(META, source="000000"), 50, 5)
    write_token_shard(str(folder / "000000.parquet"), other.schema, [other])
    assert any("hash" in line for line in verify_tokens(str(folder)))

    folder = broken("doubled")
    twin = make_table(dataclasses.replace(META, source="000001"), 37, 0)
    write_token_shard(str(folder / "000001.parquet"), twin.schema, [twin])
    assert any("37 keys occur more than once" in line for line in verify_tokens(str(folder)))


def test_shards_of_different_tokenizers_are_not_joined(tmp_path):
    first = make_store(tmp_path / "a", sizes=(20,))
    more = make_store(tmp_path / "b", sizes=(30,), prefix="m")
    other = make_store(tmp_path / "c", dataclasses.replace(META, tokenizer="b" * 64), (20,))
    assert len(TokenStore.open([first, more])) == 50
    with pytest.raises(IntegrityError, match="one tokenizer"):
        TokenStore.open([first, other])
    shutil.copy(Path(other) / "000000.parquet", Path(first) / "000000.parquet")
    assert verify_tokens(first)


def test_opening_what_is_no_store_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="none; give the folder"):
        TokenStore.open(str(tmp_path))
    with pytest.raises(UsageError, match="nothing"):
        TokenStore.open(str(tmp_path / "none.parquet"))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "plain.parquet")
    with pytest.raises(IntegrityError, match="token shard"):
        TokenStore.open(str(tmp_path / "plain.parquet"))


def test_rejects_stand_in_the_shard(tmp_path):
    table = make_table(META, 3, 0)
    url = str(tmp_path / "x.parquet")
    record = write_token_shard(url, table.schema, [table], [Reject("key7", "broken_image", "ends early")])
    assert record.rejects == 1
    stored = pq.read_metadata(url).metadata
    assert b"key7" in stored[b"flextok.rejects"]
    assert stored[b"flextok.content_sha256"].decode() == record.content_sha256


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_stream_is_even_shuffled_and_without_repeats(tmp_path, small_groups, monkeypatch, world_size):
    monkeypatch.setattr("flextok.data.tokens.stream.WINDOW_ROWS", 24)
    store = TokenStore.open(make_store(tmp_path / "t"))
    ids, labels = store.ids().astype(np.int64), store.labels()
    streams = [store.to_torch(5, keep=4, rank=rank, world_size=world_size) for rank in range(world_size)]
    orders = []
    for _ in range(2):
        batches = [list(stream) for stream in streams]
        assert {len(rank_batches) for rank_batches in batches} == {151 // (5 * world_size)}
        rows = [row for rank_batches in batches for batch in rank_batches for row in batch["row"].tolist()]
        assert len(set(rows)) == len(rows) == 151 // (5 * world_size) * 5 * world_size
        for batch in (batch for rank_batches in batches for batch in rank_batches):
            np.testing.assert_array_equal(batch["ids"], ids[batch["row"], :4])
            np.testing.assert_array_equal(batch["label"], labels[batch["row"]])
        orders.append(rows)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_stream_resumes_where_it_stopped(tmp_path, small_groups, monkeypatch):
    monkeypatch.setattr("flextok.data.tokens.stream.WINDOW_ROWS", 24)
    store = TokenStore.open(make_store(tmp_path / "t"))

    def rows(stream):
        return [batch["row"].tolist() for batch in stream]

    whole = store.to_torch(4, seed=3)
    expected = rows(whole) + rows(whole)
    stream = store.to_torch(4, seed=3)
    taken = []
    for batch in stream:
        taken.append(batch["row"].tolist())
        if len(taken) == 11:
            break
    resumed = store.to_torch(4, seed=3)
    resumed.load_state_dict(stream.state_dict())
    assert taken + rows(resumed) + rows(resumed) == expected
    with pytest.raises(ValueError, match="batch_size"):
        store.to_torch(5, seed=3).load_state_dict(stream.state_dict())


def test_stream_is_the_same_for_any_number_of_workers(tmp_path, small_groups, monkeypatch):
    monkeypatch.setattr("flextok.data.tokens.stream.WINDOW_ROWS", 24)
    store = TokenStore.open(make_store(tmp_path / "t"))
    alone = [batch["row"].tolist() for batch in store.to_torch(4)]
    loader = DataLoader(store.to_torch(4), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [batch["row"].tolist() for batch in loader] == alone
    stream = store.to_torch(4)
    stream.load_state_dict(stream.state_dict(step=9))
    resumed = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [batch["row"].tolist() for batch in resumed] == alone[9:]


def test_stream_without_shuffle_keeps_store_order(tmp_path):
    store = TokenStore.open(make_store(tmp_path / "t"))
    rows = torch.cat([batch["row"] for batch in store.to_torch(10, shuffle=False)])
    assert rows.tolist() == list(range(150))
    with pytest.raises(UsageError, match="at least batch_size"):
        store.to_torch(100, world_size=2)
