"""img2dataset's records of a shard, `<shard>.parquet` and `<shard>_stats.json`, be the shard a tar or a folder."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from flextok import storage
from flextok.data.rejects import Reject
from flextok.errors import FlextokError

TABLE, STATS = ".parquet", "_stats.json"


def records_by_shard(names: Iterable[str]) -> dict[str, set[str]]:
    """Those of `names` that may be records, by the name (without ending) of the shard they would belong to."""
    found: dict[str, set[str]] = {}
    for name in names:
        for ending in (STATS, TABLE):
            if name.endswith(ending):
                found.setdefault(name.removesuffix(ending), set()).add(name)
    return found


def compare_records(
    url: str, shard: str, records: set[str], container: str, keys: set[str], cut: bool
) -> tuple[list[Reject], set[str]]:
    """What the `records` of a shard below `url` say about inputs that are not in it, and the records that were of use.

    `keys` are those in `container` (the tar or folder); of a `cut` one it is known that some are missing.
    """
    table, stats = shard + TABLE, shard + STATS
    try:
        if table in records:
            with storage.open_read(storage.join(url, table)) as file:
                parquet = pq.ParquetFile(file)
                if {"key", "status"} <= set(parquet.schema_arrow.names):
                    return _compare_table(container, parquet, keys, cut), records
            records = records - {table}
        if stats in records:
            document = storage.read_json(storage.join(url, stats))
            if not isinstance(document, dict) or "successes" not in document:
                return [], records - {stats}
            expected = int(document["successes"])
            if expected > len(keys) and not cut:
                detail = f"{expected} samples by its stats file, found {len(keys)}"
                return [Reject(container, "truncated_container", detail)], records
        return [], records
    except (OSError, TypeError, ValueError, FlextokError, pa.ArrowException) as error:
        broken = table if table in records else stats
        return [Reject(broken, "bad_metadata", storage.redact(str(error)))], records - {broken}


def _compare_table(container: str, table: pq.ParquetFile, keys: set[str], cut: bool) -> list[Reject]:
    rejects = []
    columns = [name for name in ("key", "status", "error_message") if name in table.schema_arrow.names]
    for batch in table.iter_batches(batch_size=4096, columns=columns):
        for row in batch.to_pylist():
            if row["status"] != "success":
                detail = f"{row['status']}: {storage.redact(str(row.get('error_message')))}"
                rejects.append(Reject(f"{container}/{row['key']}", "not_downloaded", detail))
            elif str(row["key"]) not in keys and not cut:
                rejects.append(Reject(f"{container}/{row['key']}", "missing_image", "recorded as a success, not there"))
    return rejects
