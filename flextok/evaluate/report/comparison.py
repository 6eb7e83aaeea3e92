"""A comparison of evaluations in words: a table's cells, why numbers were not subtracted, and the page with both."""

from collections.abc import Sequence
from typing import Any

from flextok import storage
from flextok.evaluate.comparison import ComparedNumber, Difference
from flextok.evaluate.report.curves import comparison_charts
from flextok.evaluate.report.page import DIGEST_SHOWN, render
from flextok.provenance import read_provenance

NOTHING = "-"


def cells(number: ComparedNumber) -> list[str]:
    """K, the first evaluation's value, then value and difference of each other one."""
    shown = [_shown(*each) for each in zip(number.values, number.intervals, strict=True)]
    changes = [_change(each) for each in number.differences]
    pairs = [text for pair in zip(shown[1:], changes, strict=True) for text in pair]
    return [NOTHING if number.k is None else str(number.k), shown[0], *pairs]


def _shown(value: float | None, interval: tuple[float, float] | None) -> str:
    ends = "" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]"
    return NOTHING if value is None else f"{value:.6g}{ends}"


def _change(difference: Difference | None) -> str:
    if difference is None:
        return NOTHING
    interval = "" if difference.half_width is None else f" ± {difference.half_width:.2g}"
    return f"{difference.value:+.4g}{interval}"


def reasons(numbers: Sequence[ComparedNumber], labels: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Evaluation, fields in which its protocols differ from the first one's, and the numbers not subtracted for that."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for number in numbers:
        for label, fields in zip(labels[1:], number.differing, strict=True):
            if fields:
                found.setdefault((label, ", ".join(fields)), {})[number.name] = None
    return [(label, fields, list(names)) for (label, fields), names in found.items()]


def write_comparison(url: str, numbers: Sequence[ComparedNumber], labels: Sequence[str], urls: Sequence[str]) -> None:
    """Write the page to `url`; it makes no request of any kind."""
    page: dict[str, Any] = {
        "title": "Comparison of evaluations",
        "evaluations": [
            {"label": label, "url": storage.absolute(each), **_identity(each)}
            for label, each in zip(labels, urls, strict=True)
        ],
        "charts": comparison_charts(numbers, labels),
        "rows": [{"name": number.name, "cells": cells(number), "beyond": _beyond(number)} for number in numbers],
        "reasons": reasons(numbers, labels),
    }
    storage.write_bytes(url, render("comparison.html.j2", page).encode())


def _beyond(number: ComparedNumber) -> list[int]:
    """Places, among its cells, of the differences whose intervals leave zero out."""
    return [3 + 2 * place for place, each in enumerate(number.differences) if each and each.is_clear]


def _identity(url: str) -> dict[str, str]:
    block = read_provenance(url)
    return {"kind": block["kind"], "digest": block["digest"][:DIGEST_SHOWN]}
