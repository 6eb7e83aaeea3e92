"""Token shards of continuous latents: the same files, but a column of values and no vocabulary."""

import dataclasses
import shutil
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flextok.data.tokens import (
    DamagedFile,
    TokenMeta,
    TokenStore,
    read_shard_footer,
    summarize_tokens,
    token_schema,
    token_table,
    verify_tokens,
    write_token_manifest,
    write_token_shard,
)
from flextok.data.tokens import writer as token_writer
from flextok.errors import IntegrityError, UsageError

META = TokenMeta(tokenizer="a" * 64, vocab_size=0, num_tokens=6, codebooks=3, values="float32")
SIZES = (20, 0, 13)


def latents(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, META.num_tokens, META.codebooks)).astype(np.float32)


def make_store(folder: Path, meta: TokenMeta = META, shift: float = 0) -> str:
    records = []
    for number, rows in enumerate(SIZES):
        columns = {"key": [f"k{number}-{row}" for row in range(rows)], "label": list(range(rows))}
        schema = token_schema(dataclasses.replace(meta, source=f"{number:06d}"))
        table = token_table(schema, latents(rows, number) + shift, columns)
        records.append(write_token_shard(f"{folder}/{number:06d}.parquet", schema, [table]))
    write_token_manifest(str(folder), "tokens", records, meta, [], {})
    return str(folder)


@pytest.mark.parametrize("values", ["float32", "float16"])
def test_a_store_gives_back_the_values_that_were_written(tmp_path: Path, values: str, monkeypatch) -> None:
    monkeypatch.setattr(token_writer, "ROW_GROUP_ROWS", 8)
    url = make_store(tmp_path / "t", dataclasses.replace(META, values=values))
    expected = np.concatenate([latents(rows, number) for number, rows in enumerate(SIZES)]).astype(values)
    store = TokenStore.open(url)
    assert (store.is_continuous, store.vocab_size, store.num_tokens, store.codebooks) == (True, 0, 6, 3)
    found = store.values()
    assert found.dtype == np.dtype(values)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(store.values(keep=2), expected[:, :2])
    np.testing.assert_array_equal(store[21].values, expected[21])
    cut = store.to_arrow(keep=2)
    np.testing.assert_array_equal(np.array(cut["values"].to_pylist(), values), expected[:, :2].reshape(33, 6))
    assert cut.schema.metadata[b"flextok.num_tokens"] == b"2"
    batches = list(store.to_torch(5, keep=4, seed=1))
    for batch in batches:
        assert set(batch) == {"values", "length", "label", "row"}
        np.testing.assert_array_equal(batch["values"], expected[batch["row"], :4].astype(np.float32))
    assert len({row for batch in batches for row in batch["row"].tolist()}) == 30
    assert verify_tokens(url) == []
    summary = summarize_tokens(url)
    assert summary["values"] == values and summary["tokens"] == 33 * 6 and "vocab_size" not in summary
    assert summary["mean"] == pytest.approx(expected.astype(np.float64).mean())
    assert summary["std"] == pytest.approx(expected.astype(np.float64).std())


@pytest.mark.parametrize("values", ["float32", "float16"])
def test_other_readers_see_the_column_of_values(tmp_path: Path, values: str) -> None:
    url = make_store(tmp_path / "t", dataclasses.replace(META, values=values))
    schema = pq.read_schema(f"{url}/000000.parquet")
    kind = pa.float32() if values == "float32" else pa.float16()
    assert schema.field("values").type == pa.list_(kind, 18) and "tokens" not in schema.names
    assert [field.name for field in schema if not field.nullable] == ["key", "values", "length"]
    assert schema.metadata[b"flextok.values"] == values.encode() and schema.metadata[b"flextok.vocab_size"] == b"0"
    expected = np.concatenate([latents(rows, number) for number, rows in enumerate(SIZES)]).astype(values)
    read = pl.read_parquet(f"{url}/*.parquet")["values"].to_list()
    np.testing.assert_array_equal(np.array(read, values).reshape(expected.shape), expected)
    rows = duckdb.sql(f"select values from '{url}/*.parquet'").fetchall()
    np.testing.assert_array_equal(np.array([row[0] for row in rows], values).reshape(expected.shape), expected)


def test_ids_and_values_are_not_taken_for_each_other(tmp_path: Path) -> None:
    store = TokenStore.open(make_store(tmp_path / "t"))
    with pytest.raises(UsageError, match="store of ids, found float32; read them as `values`"):
        store.ids()
    with pytest.raises(UsageError, match="read them as `values`"):
        store[0].ids  # noqa: B018
    meta = dataclasses.replace(META, vocab_size=16, values="ids")
    ids = np.zeros((2, 6, 3), np.int64)
    table = token_table(token_schema(meta), ids, {"key": ["a", "b"]})
    write_token_shard(f"{tmp_path}/ids.parquet", table.schema, [table])
    discrete = TokenStore.open(f"{tmp_path}/ids.parquet")
    assert not discrete.is_continuous and b"flextok.values" not in table.schema.metadata
    for read in (discrete.values, lambda: discrete[0].values):
        with pytest.raises(UsageError, match="store of continuous values, found ids; read them as `ids`"):
            read()
    with pytest.raises(IntegrityError, match="one tokenizer"):
        TokenStore.open([store.shards[0].url, f"{tmp_path}/ids.parquet"])


def test_the_digest_tells_values_and_their_type_apart(tmp_path: Path) -> None:
    digests = {
        TokenStore.open(make_store(tmp_path / "a")).digest,
        TokenStore.open(make_store(tmp_path / "b", shift=1e-3)).digest,
        TokenStore.open(make_store(tmp_path / "c", dataclasses.replace(META, values="float16"))).digest,
    }
    assert len(digests) == 3
    assert TokenStore.open(make_store(tmp_path / "d")).digest in digests


def test_values_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    schema = token_schema(META)
    spoiled = latents(2, 0)
    spoiled[1, 3, 0] = np.nan
    with pytest.raises(IntegrityError, match="finite values, found 1 of 36"):
        token_table(schema, spoiled, {"key": ["a", "b"]})
    half = token_schema(dataclasses.replace(META, values="float16"))
    with pytest.raises(IntegrityError, match="store them as float32"):
        token_table(half, latents(2, 0) * 1e6, {"key": ["a", "b"]})
    for wrong in ({"values": "float64"}, {"vocab_size": 4}, {"values": "ids"}):
        with pytest.raises(ValueError, match="expected"):
            dataclasses.replace(META, **wrong)


def test_verify_finds_values_that_were_spoiled(tmp_path: Path) -> None:
    url = make_store(tmp_path / "good")
    folder = Path(shutil.copytree(url, tmp_path / "spoiled"))
    table = pq.read_table(folder / "000000.parquet")
    column = np.array(table["values"].to_pylist(), np.float32)
    column[4, 5] = np.inf
    array = pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), 18)
    place = table.schema.get_field_index("values")
    table = table.set_column(place, table.schema.field("values"), array)
    pq.write_table(table, folder / "000000.parquet")
    assert any("expected finite values, found 1 of 360" in line for line in verify_tokens(str(folder)))


def test_damage_is_an_error_of_its_own_kind(tmp_path: Path) -> None:
    url = f"{make_store(tmp_path / 't')}/000000.parquet"
    Path(url).write_bytes(Path(url).read_bytes()[:-9])
    with pytest.raises(DamagedFile, match="found damage"):
        read_shard_footer(url)
    pq.write_table(pa.table({"a": [1]}), url)
    with pytest.raises(IntegrityError, match="expected a token shard") as other:
        read_shard_footer(url)
    assert not isinstance(other.value, DamagedFile)
