"""The fixed list of reasons for which an input does not become a sample, and their bookkeeping.

Every member of a source (a file of a folder, a member of a tar, a picture of a table, an entry of a captions file that
leads to none) is a sample, a reject, or a field: a text that goes with a sample or a reject. A reject is one row, also
where it has fields, so that members = samples + fields + rejects. Containers that are damaged or empty have a row too.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa

REASONS = {
    "empty_file": "a picture of 0 bytes",
    "not_an_image": "named like a picture, but no decoder recognises the content",
    "broken_image": "recognised, but the data ends early or does not decode",
    "unsupported_pixels": "floating point pixels",
    "too_many_bytes": "file larger than max_bytes, not read",
    "too_many_pixels": "more than max_pixels by its header, not decoded",
    "too_small": "a side below min_side",
    "extreme_aspect": "sides in a ratio above max_aspect",
    "unreadable": "could not be opened or read, also after retries",
    "missing_image": "metadata, or members of a tar, without a picture",
    "bad_metadata": "its JSON, label or caption entry cannot be parsed",
    "no_label": "not in the label CSV",
    "no_caption": "not in the captions file",
    "unsafe_name": "its name leads out of the source, or is not a regular file's",
    "duplicate_key": "a second sample under the same key in one tar",
    "bad_container": "a tar or Parquet file that cannot be read at all",
    "truncated_container": "a tar that ends early, or a shard with fewer samples than its record says",
    "duplicate": "bytes equal to those of another sample (only with duplicates: drop)",
    "hidden_file": "name begins with a dot (also macOS ._ files)",
    "unused_field": "a member of a sample that is not used: no json, txt or cls of its name",
    "other_file": "not a picture, and not named like one",
    "empty_container": "a tar or Parquet file without samples",
    "not_downloaded": "img2dataset could not fetch it, by its own record",
}
# Known beforehand or wished for: they stand in rejects.parquet, but say nothing against the source.
EXPECTED_REASONS = frozenset(
    {"duplicate", "hidden_file", "unused_field", "other_file", "empty_container", "not_downloaded"}
)

REJECTS_SCHEMA = pa.schema([("source", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
EXAMPLES_EACH = 3


class Reject(NamedTuple):
    """An input that did not become a sample."""

    source: str
    reason: str
    detail: str


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """Number of rejects for each reason, the most frequent first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())


def rejects_table(rejects: Iterable[Reject]) -> pa.Table:
    """`rejects.parquet`, sorted."""
    rows = sorted(rejects)
    columns = [[row[i] for row in rows] for i in range(len(REJECTS_SCHEMA))]
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=REJECTS_SCHEMA)


def describe_rejects(rejects: list[Reject]) -> list[str]:
    """A line for each reason, with its count, meaning and some examples."""
    lines = []
    for reason, count in count_reasons(rejects).items():
        examples = [reject for reject in rejects if reject.reason == reason][:EXAMPLES_EACH]
        shown = "; ".join(f"{reject.source} ({reject.detail})" for reject in examples)
        lines.append(f"{count} x {reason} ({REASONS[reason]}): {shown}")
    return lines
