"""CSV files as people have them: with a header, and commas, semicolons or tabs between the fields."""

import csv
import io
import re
import sys
from collections.abc import Collection

DELIMITERS = ",;\t"
# The text is in memory already: a long field is no danger.
csv.field_size_limit(sys.maxsize)


def csv_rows(text: str, known: Collection[str]) -> "csv.DictReader[str]":
    """The rows of a CSV with a header; its delimiter is the one that gives the most of the `known` columns, or else the
    most columns."""
    # Lines may end as those of old Macs did; `csv` takes no such end inside of a file with others.
    text = re.sub(r"\r(?!\n)", "\n", text)

    def columns(delimiter: str) -> tuple[int, int]:
        header = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
        return len(set(header) & set(known)), len(header)

    return csv.DictReader(io.StringIO(text), delimiter=max(DELIMITERS, key=columns))
